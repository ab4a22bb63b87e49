"""benchmark.py's cases stand up to their own checks, at a size that takes no time."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

infra_bench = pytest.importorskip("infra_bench")


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """Import the script, with a floor for tensors of any size."""
    path = Path(__file__).resolve().parents[1] / "benchmark.py"
    spec = importlib.util.spec_from_file_location("custom_gelu_ext_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.LARGE = 0
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_gelu_and_its_floor_are_right(benchmark: ModuleType, tmp_path: Path, dtype) -> None:
    run = infra_bench.Run("demo", directory=tmp_path, version="0")
    for mode in benchmark.MODES:
        for case, implementations in benchmark.speed_cases(mode, dtype, 2**12):
            run.measure(case, implementations, device="cpu", budget_s=0.001)
    rows = [(case.name, row) for case in run.cases for row in case.rows]
    assert [(name, row.reason) for name, row in rows if row.status != "ok"] == []
    floors = [row.implementation for _, row in rows[2::3]]
    assert floors == ["torch copy", "torch add"] * 2
    assert all(row.error == 0 for _, row in rows if row.implementation == "torch copy")


def test_bias_gelu_and_its_floor_are_right(benchmark: ModuleType, tmp_path: Path) -> None:
    run = infra_bench.Run("demo", directory=tmp_path, version="0")
    for case, implementations in benchmark.bias_cases(32, 48, torch.float32):
        here = [each for each in implementations if each.name != benchmark.COMPILED]
        run.measure(case, here, device="cpu", budget_s=0.001)
    names = [[row.implementation for row in case.rows] for case in run.cases]
    ours, eager = benchmark.OURS, benchmark.EAGER
    assert names == [[ours, eager, "torch copy"], [ours, eager, "torch add"]]
    assert all(row.status in ("ok", "skipped") for case in run.cases for row in case.rows)
