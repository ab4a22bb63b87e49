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


def result(name, losses, seconds=(1.0, 1.0)):
    timeline = {"milliseconds": 1.0, "compute": [(0, 1)], "communication": []}
    return {
        "name": name,
        "losses": losses,
        "tokens": 100,
        "seconds": list(seconds),
        "peak_bytes": 2**21,
        "state_bytes": 2**20,
        "exposed_ms": 0.5,
        "flops_a_token": 1.0,
        "timeline": timeline,
    }


@pytest.mark.parametrize(
    ("losses", "status"),
    [([5.0, 4.0], "ok"), ([5.0, 4.1], "refused"), ([5.0, float("nan")], "refused")],
)
def test_losses_that_differ_are_refused(benchmark, losses, status):
    error = benchmark.loss_difference([losses], [5.0, 4.0])
    tokens, state, exposed = benchmark.rows_for(
        "ddp", [result("ddp", losses, (1.0, 2.0))], True, error, "float32", peak=0.0
    )
    assert tokens.status == status
    assert list(tokens.samples) == [100.0, 50.0]
    assert (state.samples, exposed.samples) == ([1.0], [0.5])


def test_every_method_is_compared_with_one_process_on_the_same_batch(benchmark):
    workload = benchmark.Workload("tiny", 2, 16, "float32", 1, 3, 2, tuple(benchmark.METHODS))
    every = benchmark.trials(workload, ranks=2)
    methods = [m for kind in benchmark.METHODS for m in benchmark.METHODS[kind]]
    assert len(every) == 2 + 2 * (1 + len(methods))
    for each in every:
        settings = benchmark.parse_settings("", each["options"])
        splits = each["kind"] in ("ddp", "fsdp") or "reference" in each["name"]
        assert settings.batch_size == (4 if splits else 2)
        assert each.get("alone", False) == (
            "reference" in each["name"] or "no " in each["name"][:3]
        )


def test_ranks_that_fail_give_their_own_line(benchmark, tmp_path):
    options = ["--model", "micro", "--batch-size", "2", "--sequence-length", "17"]
    wrong = {"name": "x", "kind": "tensor_parallel", "options": options, "warm_up": 1, "timed": 1}
    told = {"device": "cpu", "trials": [wrong], "all_reduce_bytes": []}
    why = benchmark.launch(told, 2, tmp_path, timeout_s=60)
    assert "--sequence-length 17 is not divisible by the 2 tensor-parallel ranks" in why


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_whole_benchmark_runs_and_records(tmp_path):
    command = [sys.executable, str(FILE), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("*.json")
    text = file.read_text()
    for name in ("no communication", "torch ddp", "zero1", "fsdp", "tensor", "1f1b", "ring"):
        assert name in text
    (picture,) = tmp_path.glob("*.svg")
    assert picture.read_text().startswith("<svg")
