"""benchmark.py ends with a record whose runs were compared, and says so when one fails."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from dist_playground.methods import METHODS, VARIANTS, Method, Workload, trials
from dist_playground.ranks import Orders, launch
from dist_playground.settings import parse_settings
from dist_playground.trial import Trial

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
    found = [result("ddp", losses, (1.0, 2.0))]
    tokens = benchmark.speed_row(Method("ddp", "ddp"), found, "float32", error)
    assert tokens.status == status
    assert list(tokens.samples) == [100.0, 50.0]
    state, exposed = benchmark.other_rows(Method("ddp", "ddp"), found, 0.0, None)
    assert (state.samples, exposed.samples) == ([1.0], [0.5])


def test_every_method_is_compared_with_one_process_on_the_same_batch():
    workload = Workload("tiny", 2, 16, "float32", 1, 3, 2, tuple(METHODS))
    every = trials(workload)
    methods = [m for kind in METHODS for m in METHODS[kind]]
    assert len(every) == 2 + 2 * (1 + len(methods))
    for each in every:
        splits = each.kind in ("ddp", "fsdp") or "reference" in each.name
        assert each.settings.batch_size == (4 if splits else 2)
        assert each.alone == (each.name.startswith(("reference", "no communication")))


def test_what_is_not_eager_comes_once_and_last():
    kinds = ("ddp", "fsdp", "pipeline")
    every = trials(Workload("tiny", 8, 16, "float32", 1, 3, 2, kinds, tuple(VARIANTS)))
    names = [each.name for each in every]
    assert names.count("ddp") == 2
    assert names.count("ddp, compiled, graph") == 1
    assert not any("reshard, " in name or "pipeline, comp" in name for name in names)
    (graphed,) = (each for each in every if each.name == "torch ddp, graph")
    assert graphed.settings.graph
    assert graphed.warm_up == 1 + 11
    first = next(number for number, each in enumerate(every) if each.settings.graph)
    assert not any(name in ("ddp", "zero1") for name in names[first:])


def test_a_case_has_a_row_for_all_that_was_run(benchmark):
    workload = Workload("large", 2, 16, "bfloat16", 1, 3, 1, ("ddp",), tuple(VARIANTS))
    losses = [5.0, 4.0]
    names = ["reference for ddp", "no communication", "torch ddp", "ddp", "ddp, graph"]
    added = {}

    class Run:
        def add(self, name, rows, baseline, params):
            added[name] = rows

    timelines = benchmark.add_training(Run(), workload, [result(n, losses) for n in names], 1.0)
    (rows,) = added.values()
    assert [r.implementation for r in rows if r.metric == "tokens"] == names[1:]
    assert [r.implementation for r in rows if r.metric == "predicted memory"] == ["ddp"]
    assert list(timelines) == names[2:4]


def test_ranks_that_fail_give_their_own_line(tmp_path):
    options = ["--model", "micro", "--batch-size", "2", "--sequence-length", "17"]
    wrong = Trial("x", "tensor_parallel", parse_settings("", options), warm_up=1, timed=1)
    why = launch(Orders("cpu", [wrong], []), 2, tmp_path, timeout_s=60)
    assert "--sequence-length 17 is not divisible by the 2 tensor-parallel ranks" in why


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_whole_benchmark_runs_and_records(tmp_path):
    command = [sys.executable, str(FILE), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("*.json")
    text = file.read_text()
    for name in (
        "no communication",
        "torch ddp",
        "zero1",
        "fsdp",
        "tensor",
        "torch pipeline",
        "ring",
    ):
        assert name in text
    (picture,) = tmp_path.glob("*.svg")
    assert picture.read_text().startswith("<svg")
