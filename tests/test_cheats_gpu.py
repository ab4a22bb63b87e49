"""Cheats that only a GPU allows: work on other streams, TF32, captured answers."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from infra_bench import Case, Implementation, Measurement, Run
from infra_bench.load import load

pytestmark = pytest.mark.gpu
Measured = Callable[..., Measurement]
MakeCase = Callable[..., Case]
N = 1024


@pytest.fixture
def case(product: MakeCase) -> Case:
    """Make a product that takes tens of microseconds."""

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(torch.randn(N, N, generator=generator, device="cuda") for _ in "ab")

    return product(inputs=draw, flops=2.0 * N**3)


@pytest.fixture(autouse=True)
def _full_precision() -> None:
    torch.set_float32_matmul_precision("highest")


def refused(row: Measurement, because: str) -> None:
    assert row.status == "refused"
    assert because in row.reason
    assert row.samples == ()


def test_an_honest_one_is_accepted(measured: Measured, case: Case) -> None:
    row = measured(lambda a, b: torch.mm(a, b), case, device="cuda")
    assert (row.status, row.reason) == ("ok", "")
    assert row.timer in ("cuda events", "cuda graph")
    # An H100's float32 units give 67 TFLOP/s at most, and no GPU a hundred times as much.
    assert row.rate is not None
    assert 1e10 < row.rate < 6e15


def test_work_left_on_a_side_stream(measured: Measured, case: Case) -> None:
    side = torch.cuda.Stream()

    def cheat(a: Tensor, b: Tensor) -> Tensor:
        out = torch.empty_like(a)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.mm(a, b, out=out)
        return out

    refused(measured(cheat, case, device="cuda"), "stream")


def test_side_stream_that_does_not_wait_for_its_inputs(measured: Measured, case: Case) -> None:
    side = torch.cuda.Stream()

    def cheat(a: Tensor, b: Tensor) -> Tensor:
        out = torch.empty_like(a)
        with torch.cuda.stream(side):
            torch.mm(a, b, out=out)
        torch.cuda.current_stream().wait_stream(side)
        return out

    refused(measured(cheat, case, device="cuda"), "without waiting for this one")


def test_more_work_left_behind_a_right_answer(measured: Measured, case: Case) -> None:
    side = torch.cuda.Stream()
    large = torch.randn(4096, 4096, device="cuda")

    def cheat(a: Tensor, b: Tensor) -> Tensor:
        with torch.cuda.stream(side):
            torch.mm(large, large)
        return a @ b

    refused(measured(cheat, case, device="cuda"), "leaves work on another stream")


def test_side_stream_that_is_joined_is_accepted(measured: Measured, case: Case) -> None:
    side = torch.cuda.Stream()

    def honest(a: Tensor, b: Tensor) -> Tensor:
        out = torch.empty_like(a)
        here = torch.cuda.current_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            torch.mm(a[: N // 2], b, out=out[: N // 2])
        torch.mm(a[N // 2 :], b, out=out[N // 2 :])
        here.wait_stream(side)
        return out

    row = measured(honest, case, device="cuda")
    assert (row.status, row.reason) == ("ok", "")


def test_tf32_passed_off_as_float32(measured: Measured, case: Case) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32, so the cheat would be honest")

    def cheat(a: Tensor, b: Tensor) -> Tensor:
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return a @ b
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    refused(measured(cheat, case, device="cuda"), "above the tolerance")


def test_partial_write(measured: Measured, case: Case) -> None:
    def cheat(a: Tensor, b: Tensor) -> Tensor:
        out = torch.empty_like(a)
        torch.mm(a[: N // 2], b, out=out[: N // 2])
        return out

    refused(measured(cheat, case, device="cuda"), f"{N * N // 2} of {N * N} values are not finite")


def test_answer_cached_by_address(measured: Measured, case: Case) -> None:
    answers: dict[int, Tensor] = {}

    def cheat(a: Tensor, b: Tensor) -> Tensor:
        return answers.setdefault(a.data_ptr(), a @ b).clone()

    refused(measured(cheat, case, device="cuda"), "relative error")


def test_correct_only_at_first(measured: Measured, case: Case) -> None:
    calls = 0

    def cheat(a: Tensor, b: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return a @ b if calls <= 2 else torch.zeros_like(a)

    row = measured(cheat, case, device="cuda")
    refused(row, "relative error 1 is above")
    assert "stream" not in row.reason


def test_correct_only_outside_of_a_graph(run: Run, case: Case) -> None:
    def cheat(a: Tensor, b: Tensor) -> Tensor:
        return torch.zeros_like(a) if torch.cuda.is_current_stream_capturing() else a @ b

    implementations = [Implementation("honest", torch.mm), Implementation("other", cheat)]
    result = run.measure(case, implementations, device="cuda", budget_s=0.05, graph=True)
    assert (result.rows[0].status, result.rows[0].timer) == ("ok", "cuda graph")
    refused(result.rows[1], "in a timed call: relative error")


def test_correct_only_while_the_host_is_ahead(run: Run, case: Case) -> None:
    calls = 0

    def cheat(a: Tensor, b: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return a @ b if calls <= 5 else torch.zeros_like(a)  # the last two beside other work

    implementations = [Implementation("honest", torch.mm), Implementation("other", cheat)]
    result = run.measure(case, implementations, device="cuda", budget_s=0.05, eager=True)
    assert (result.rows[0].status, result.rows[0].timer) == ("ok", "cuda events, eager")
    refused(result.rows[1], "relative error")


def test_eager_calls_cost_what_the_host_takes(run: Run, product: MakeCase) -> None:
    def slow_host(a: Tensor, b: Tensor) -> Tensor:
        until = time.perf_counter() + 200e-6
        while time.perf_counter() < until:
            pass
        return torch.add(a, b)

    case = product(inputs=small, reference=torch.add, flops=0.0)
    implementations = [Implementation("honest", torch.add), Implementation("slow", slow_host)]
    result = run.measure(case, implementations, device="cuda", budget_s=0.05, eager=True)
    honest, slow = result.rows
    assert [row.status for row in result.rows] == ["ok", "ok"]
    assert honest.median is not None
    assert slow.median is not None
    assert honest.median < 100e-6
    assert slow.median > 200e-6


def small(generator: torch.Generator) -> tuple[Tensor, ...]:
    return tuple(torch.randn(4096, generator=generator, device="cuda") for _ in "ab")


def test_short_calls_are_timed_in_a_graph(run: Run, product: MakeCase) -> None:
    case = product(inputs=small, reference=torch.add, bytes=3 * 4.0 * 4096, flops=0.0)
    result = run.measure(
        case,
        [
            Implementation("honest", torch.add),
            Implementation("twice", lambda a, b: a / 2 + b + a / 2),
        ],
        device="cuda",
        budget_s=0.05,
    )
    assert [(row.status, row.reason, row.timer) for row in result.rows] == [
        ("ok", "", "cuda graph")
    ] * 2
    one, twice = result.rows
    assert one.median is not None
    assert twice.median is not None
    # A kernel of this size takes 1 to 5 us, and four take about four times as long as one.
    assert one.median < 20e-6
    assert 1.5 < twice.median / one.median < 8


def test_what_cannot_be_captured_makes_all_fall_back_to_events(run: Run, product: MakeCase) -> None:
    def waits(a: Tensor, b: Tensor) -> Tensor:
        return a + b if float(a.sum()) > -1e9 else b

    case = product(inputs=small, reference=torch.add, flops=0.0)
    implementations = [Implementation("honest", torch.add), Implementation("waits", waits)]
    result = run.measure(case, implementations, device="cuda", budget_s=0.05)
    assert [(row.status, row.reason, row.timer) for row in result.rows] == [
        ("ok", "", "cuda events")
    ] * 2


def test_a_graph_that_is_asked_for_and_impossible_is_a_failure(run: Run, product: MakeCase) -> None:
    def waits(a: Tensor, b: Tensor) -> Tensor:
        return a + b if float(a.sum()) > -1e9 else b

    case = product(inputs=small, reference=torch.add, flops=0.0)
    implementations = [Implementation("honest", torch.add), Implementation("waits", waits)]
    result = run.measure(case, implementations, device="cuda", budget_s=0.05, graph=True)
    assert [row.status for row in result.rows] == ["ok", "failed"]
    assert result.rows[0].timer == "cuda graph"


def test_events_leave_out_what_the_host_does_before_a_launch(run: Run, product: MakeCase) -> None:
    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(torch.randn(1 << 24, generator=generator, device="cuda") for _ in "ab")

    def slow_host(a: Tensor, b: Tensor) -> Tensor:
        for _ in range(20):
            torch.empty(1, device="cuda")
        return a + b

    case = product(inputs=draw, reference=torch.add, bytes=3.0 * 4 * (1 << 24), flops=0.0)
    implementations = [Implementation("honest", torch.add), Implementation("slow host", slow_host)]
    result = run.measure(case, implementations, device="cuda", budget_s=0.2)
    assert [(row.status, row.reason) for row in result.rows] == [("ok", "")] * 2
    assert result.rows[1].ratio == pytest.approx(1.0, rel=0.15)


def test_the_record_knows_the_gpu(run: Run, product: MakeCase, case: Case) -> None:
    run.measure(case, [Implementation("honest", torch.mm)], device="cuda", budget_s=0.05)
    path = run.finish()
    name = torch.cuda.get_device_name(0).lower()
    assert any(word in path.name for word in name.split() if word != "nvidia")


def test_a_crash_on_the_gpu_leaves_a_record_of_what_was_before(tmp_path: Path) -> None:
    program = """
import sys; from pathlib import Path
import torch
from infra_bench import Case, Implementation, Run
def draw(g): return (torch.randn(1000, generator=g, device="cuda"),)
def crash(x): return x[torch.full((1000,), 5000, device="cuda")]
run = Run("demo", directory=Path("."), version="1")
for name, function in (("before", torch.sin), ("crash", crash), ("after", torch.sin)):
    implementations = [Implementation("honest", torch.sin), Implementation("other", function)]
    case = Case(name, draw, torch.sin, 1e-5, "honest")
    run.measure(case, implementations, device="cuda", budget_s=0.02)
run.finish()
sys.exit(run.exit_code)
"""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    (record,) = (tmp_path / "results").glob("*.json")
    statuses = [[row.status for row in case.rows] for case in load(record).cases]
    assert statuses == [["ok", "ok"], ["failed", "failed"], ["failed", "failed"]]
