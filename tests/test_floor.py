"""A peer with a reference of its own is held to that one, and the others to the case's."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from infra_bench import Case, Implementation, Measurement, Run, error, measure, tensors
from infra_bench.load import load

MakeCase = Callable[..., Case]
HONEST = Implementation("honest", torch.matmul)
BUFFER = torch.empty(64, 64)


def a_copy(function: Callable[[Tensor, Tensor], Tensor] = lambda a, b: a.clone()) -> Implementation:
    return Implementation("copy", function, ours=False, reference=lambda a, b: a)


def rows(run: Run, case: Case, *implementations: Implementation) -> list[Measurement]:
    return list(run.measure(case, implementations, device="cpu", budget_s=0.02).rows)


def test_a_right_copy_beside_a_product(run: Run, product: MakeCase) -> None:
    # In between, so that right answers change twice in every pass.
    honest, copy, other = rows(
        run, product(), HONEST, a_copy(), Implementation("other", lambda a, b: (b.t() @ a.t()).t())
    )
    assert [honest.status, copy.status, other.status] == ["ok", "ok", "ok"]
    assert copy.error == 0.0
    assert honest.error is not None
    assert 0 < honest.error < 1e-6
    assert copy.ratio is not None
    assert copy.rate is not None
    assert load(run.finish()).cases[0].rows[1] == copy


@pytest.mark.parametrize(
    ("function", "because"),
    [
        (lambda a, b: b.clone(), "relative error"),
        (torch.matmul, "relative error"),
        (lambda a, b: torch.full_like(a, float("nan")), "not finite"),
        (lambda a, b: torch.empty_like(a), "not finite|relative error"),
        (lambda a, b: a, "shares memory with an input"),
        (lambda a, b: BUFFER.copy_(a), "same memory from every call"),
        (lambda a, b: a[:-1].clone(), r"shape is \(63, 64\), not \(64, 64\)"),
        (lambda a, b: a.double(), "dtype is torch.float64, not torch.float32"),
    ],
)
def test_a_wrong_copy_is_refused(
    run: Run, product: MakeCase, function: Callable[..., Tensor], because: str
) -> None:
    honest, copy = rows(run, product(), HONEST, a_copy(function))
    assert (honest.status, copy.status, copy.samples) == ("ok", "refused", ())
    assert re.search(because, copy.reason)
    assert run.exit_code == 0


@pytest.mark.parametrize("calls", [3, 30])
def test_a_copy_that_is_right_only_at_first(run: Run, product: MakeCase, calls: int) -> None:
    kept: list[Tensor] = []

    def stale(a: Tensor, b: Tensor) -> Tensor:
        if len(kept) < calls:
            kept.append(a.clone())
        return kept[-1].clone()

    honest, copy = rows(run, product(), HONEST, a_copy(stale))
    assert (honest.status, copy.status) == ("ok", "refused")
    assert copy.reason.startswith("in a timed call: relative error")


def test_the_others_are_not_held_to_its_reference(run: Run, product: MakeCase) -> None:
    copier = Implementation("ours", lambda a, b: a.clone())
    statuses = [row.status for row in rows(run, product(), HONEST, a_copy(), copier)]
    assert statuses == ["ok", "ok", "refused"]
    assert run.exit_code == 1


def test_number_and_shape_of_outputs_are_its_own(run: Run, product: MakeCase) -> None:
    case = product(reference=lambda a, b: (a + b, (a - b).sum(0)))
    honest, copy, two = rows(
        run,
        case,
        Implementation("honest", lambda a, b: (a + b, (a - b).sum(0))),
        a_copy(),
        Implementation(
            "two",
            lambda a, b: (a[:3] + 1, b * 2),
            ours=False,
            reference=lambda a, b: (a[:3] + 1, 2 * b),
        ),
    )
    assert [honest.status, copy.status, two.status] == ["ok", "ok", "ok"]


def test_it_may_be_the_baseline(run: Run, product: MakeCase) -> None:
    honest, copy = rows(run, product(baseline="copy"), HONEST, a_copy())
    assert copy.ratio == 1.0
    assert honest.ratio == pytest.approx(copy.median / honest.median)


def test_in_place_it_sees_the_contents_that_it_got(run: Run, product: MakeCase) -> None:
    case = product(reference=lambda a, b: a + b, inplace=True)
    double = Implementation(
        "double", lambda a, b: a.mul_(2), ours=False, reference=lambda a, b: 2 * a
    )
    honest, floor = rows(run, case, Implementation("honest", lambda a, b: a.add_(b)), double)
    assert (honest.status, floor.status, floor.reason) == ("ok", "ok", "")


def test_ours_cannot_bring_its_own_reference() -> None:
    with pytest.raises(ValueError, match=r"'easy' is ours and has a reference of its.*ours=False"):
        Implementation("easy", torch.add, reference=torch.add)


def test_its_reference_has_to_be_float64(run: Run, product: MakeCase) -> None:
    low = Implementation("low", torch.add, ours=False, reference=lambda a, b: (a + b).float())
    with pytest.raises(TypeError, match=r"the reference of 'low' returned torch.float32; compute"):
        rows(run, product(), HONEST, low)
    none = Implementation("none", torch.add, ours=False, reference=lambda a, b: None)
    with pytest.raises(TypeError, match="the reference of 'none' returned no tensor"):
        rows(run, product(name="other"), HONEST, none)


def test_a_case_too_large_to_verify_does_not_end_the_run(run: Run, product: MakeCase) -> None:
    def too_large(*inputs: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB.")

    (row,) = rows(run, product(reference=too_large), HONEST)
    assert row.status == "failed"
    assert row.reason.startswith("no memory to verify it: OutOfMemoryError: CUDA out of memory")
    (row,) = rows(run, product(name="other"), HONEST)
    assert row.status == "ok"


def draw_large(generator: torch.Generator) -> tuple[Tensor, ...]:
    """Draw enough that a copy takes longer than its launch, and is timed by events."""
    return tuple(torch.randn(1 << 24, generator=generator, device="cuda") for _ in "ab")


@pytest.mark.gpu
def test_a_copy_on_a_gpu(run: Run, product: MakeCase) -> None:
    side = torch.cuda.Stream()

    def elsewhere(a: Tensor, b: Tensor) -> Tensor:
        out = torch.empty_like(a)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            out.copy_(a)
        return out

    case = product(inputs=draw_large, reference=torch.add, bytes=2.0 * 4 * (1 << 24), flops=0.0)
    result = run.measure(
        case,
        [
            Implementation("honest", torch.add),
            a_copy(),
            Implementation("elsewhere", elsewhere, ours=False, reference=lambda a, b: a),
        ],
        device="cuda",
        budget_s=0.05,
    )
    honest, copy, other = result.rows
    assert (honest.status, copy.status, copy.reason) == ("ok", "ok", "")
    assert copy.error == 0.0
    assert copy.timer == honest.timer
    assert other.status == "refused"
    assert "stream" in other.reason


@pytest.mark.gpu
def test_large_inputs_leave_room_on_the_gpu(
    run: Run, product: MakeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two inputs and an output of 8 GiB each fit into 80 GB; here the same, 16 times smaller."""
    n = 1 << 26
    monkeypatch.setattr(measure, "LARGEST_OF_SEVERAL", 0)
    monkeypatch.setattr(tensors, "MOST_POISON", 0)
    monkeypatch.setattr(tensors, "PIECE", tensors.PIECE // 16)
    monkeypatch.setattr(error, "CHUNK", error.CHUNK // 16)

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(
            torch.randn(n, generator=generator, device="cuda", dtype=torch.float64) for _ in "ab"
        )

    flush = 2 * torch.cuda.get_device_properties(0).L2_cache_size
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = run.measure(
        product(inputs=draw, reference=torch.mul, tolerance=1e-14),
        [
            Implementation("honest", torch.mul),
            Implementation("other", lambda a, b: b * a),
            Implementation("add", torch.add, ours=False, reference=lambda a, b: a + b),
        ],
        device="cuda",
        budget_s=0.05,
    )
    assert [(row.status, row.reason) for row in result.rows] == [("ok", "")] * 3
    peak = torch.cuda.max_memory_allocated() - before - flush
    assert peak / (8 * n) < 8.5
