"""benchmark.py ends with a record whose runs were compared, and says so when one fails."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[1] / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("dist_playground_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def record(losses, rate=100.0):
    rank = {"peak_bytes": 2**21, "state_bytes": 2**20}
    return {"losses": losses, "tokens_per_second": [1.0, rate, rate], "ranks": [rank, rank]}


def workload(benchmark, **changes):
    values = {"device": "cpu", "ranks": 2, "model": "tiny", "rows": 2, "sequence_length": 16}
    values |= {"dtype": "float32", "warm_up": 1, "steps": 2, "rounds": 1}
    return benchmark.Workload(**(values | changes))


def test_losses_that_differ_are_refused(benchmark):
    small, method = workload(benchmark), benchmark.Method("ddp", "ddp.py", 2, 4)
    for losses, status in (
        ([5.0, 4.0], "ok"),
        ([5.0, 4.1], "refused"),
        ([5.0, float("nan")], "refused"),
    ):
        error = benchmark.loss_difference([record(losses)], record([5.0, 4.0]))
        tokens, peak, state = benchmark.rows_of(small, method, [record(losses)], error)
        assert tokens.status == status
        assert list(tokens.samples) == [100.0, 100.0]  # without the warm-up
        assert (peak.samples, state.samples, peak.unit) == ([2.0], [1.0], "MiB")


def test_a_script_that_fails_gives_its_own_line(benchmark):
    method = benchmark.Method("ddp", "ddp.py", 2, 3)
    with pytest.raises(benchmark.RunFailedError, match=r"--batch-size 3 .*: use --batch-size 2"):
        benchmark.train(workload(benchmark), method, steps=1)


@pytest.mark.slow
def test_the_whole_benchmark_runs_and_records(tmp_path):
    command = [sys.executable, str(FILE), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("*.json")
    text = file.read_text()
    for name in ("single process", "no communication", "ddp", "fsdp", "tensor parallel"):
        assert name in text
