"""benchmark.py: its command line, and the whole course of a GPU's run, on small sizes on a CPU."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("numpy")
BENCHMARK = Path(__file__).resolve().parents[1] / "benchmark.py"
harness = pytest.mark.skipif(
    importlib.util.find_spec("infra_bench") is None
    and not (BENCHMARK.parents[1] / "infra_bench").exists(),
    reason="the harness is not here",
)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARK, *arguments], capture_output=True, text=True, timeout=100
    )


@harness
def test_chosen_kernels_sizes_and_peers_are_what_the_record_holds(tmp_path):
    done = command(
        *("--device", "cpu", "--sizes", "33x20x17", "16", "--kernels", "naive", "threaded"),
        *("--peers", "torch", "--quick", "--out", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    assert [case["name"] for case in record["cases"]] == ["33x20x17", "16x16x16"]
    for case in record["cases"]:
        rows = {row["implementation"]: row for row in case["rows"]}
        assert list(rows) == ["torch.matmul", "01 naive", "05 threaded"]
        assert all(row["status"] == "ok" and row["error"] < 1e-6 for row in rows.values())
    assert "The climb at 16x16x16:" in done.stdout
    assert "vs 01 naive" in done.stdout


@harness
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--kernels", "nope"], "no kernel 'nope' for cpu: there are naive, reordered"),
        (["--peers", "blas"], "no peer 'blas' for cpu here: there are torch.matmul"),
        (["--sizes", "2x3"], "'2x3': give N, or MxNxK"),
        (["--sizes", "0"], "'0': each size must be at least 1"),
    ],
)
def test_what_does_not_exist_is_named(arguments, says):
    done = command("--device", "cpu", *arguments)
    assert done.returncode != 0
    assert says in done.stderr


@harness
def test_the_course_on_a_gpu(tmp_path, monkeypatch):
    """Only the GPU itself is missing: its peaks are made up, and its tensors lie on the CPU."""
    spec = importlib.util.spec_from_file_location("matmul_benchmark", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, benchmark)
    spec.loader.exec_module(benchmark)
    from infra_bench import Run

    launches = {}

    class OnCpu(Run):
        def measure(self, case, implementations, *, device, budget_s, graph, eager):
            launches[case.name] = "graph" if graph else "eager" if eager else "hidden"
            return super().measure(case, implementations, device="cpu", budget_s=budget_s)

    monkeypatch.setattr(benchmark, "SMALL", benchmark.squares(16, 24))
    monkeypatch.setattr(benchmark, "LARGE", benchmark.squares(32))
    monkeypatch.setattr(benchmark, "RAGGED", [(3, 33, 40)])
    monkeypatch.setattr(benchmark, "GRAPH_FLOPS", 50_000.0)
    monkeypatch.setattr(benchmark, "_peaks", lambda run: (5e12, 1e11))
    climb = benchmark.Climb(
        OnCpu("cuda-matmul-f32", directory=tmp_path, version="0"),
        torch.device("cuda"),
        rungs={"01 naive": "naive", "05 threaded": "threaded", "auto": "auto"},
        peers={"torch.matmul": torch.matmul},
        share=0.01,
    )
    for size in (*benchmark.SMALL, *benchmark.LARGE, *benchmark.RAGGED):
        climb.measure(size)
    climb.fastest["01 naive"] = 1.0  # FLOP/s
    climb.measure((20, 20, 20))
    climb.compare_with_torch()
    path = climb.run.finish(tmp_path)
    climb.print_ladder(path)

    assert launches == {
        "16x16x16": "graph",
        "16x16x16, call by call": "eager",
        "24x24x24": "graph",
        "24x24x24, call by call": "eager",
        "32x32x32": "hidden",
        "3x33x40": "graph",
        "20x20x20": "graph",
    }
    cases = {case["name"]: case for case in json.loads(path.read_text())["cases"]}
    assert cases["32x32x32"]["peak_flops"] == 5e12
    naive = next(r for r in cases["20x20x20"]["rows"] if r["implementation"] == "01 naive")
    assert naive["status"] == "skipped"
    assert naive["reason"] == "at its best rate a call would take more than 0.005 s"
    ratios = [cases[name]["rows"][-1]["ratio"] for name in ("16x16x16", "24x24x24")]
    speeds = {
        (row["metric"], row["implementation"]): row["ratio"]
        for row in cases["squares to 1024, in a graph"]["rows"]
    }
    assert speeds["geometric mean of speeds", "auto"] == pytest.approx(math.prod(ratios) ** 0.5)
    assert speeds["least speed", "auto"] == pytest.approx(min(ratios))
    assert {"squares to 1024, call by call", "squares from 2048", "ragged and skinny"} <= set(cases)
