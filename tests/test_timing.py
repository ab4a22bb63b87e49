"""The clock tells how long a call takes, in turns, and within the budget."""

import time
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from infra_bench import Case, Implementation, Run, cuda, measure

MakeCase = Callable[..., Case]


def sleeping(seconds: float, calls: list[str], name: str) -> Callable[[Tensor, Tensor], Tensor]:
    def function(a: Tensor, b: Tensor) -> Tensor:
        calls.append(name)
        time.sleep(seconds)
        return a @ b

    return function


def test_a_known_time_is_measured_and_compared(run: Run, product: MakeCase) -> None:
    result = run.measure(
        product(),
        [
            Implementation("honest", sleeping(0.01, [], "")),
            Implementation("double", sleeping(0.02, [], "")),
        ],
        device="cpu",
        budget_s=0.2,
    )
    one, double = result.rows
    # A sleep is never shorter than asked for; on a busy machine it is longer.
    assert one.minimum is not None
    assert 0.01 <= one.minimum < 0.02
    assert double.ratio == pytest.approx(0.5, rel=0.25)
    assert double.minimum is not None
    assert double.minimum >= 0.02
    assert one.rate == pytest.approx(2 * 64**3 / one.median)


def test_implementations_take_turns_in_an_order_drawn_anew_each_round(
    run: Run, product: MakeCase
) -> None:
    """Each has a sample in every round, and each is at times right after each other one.

    In a fixed order one would always follow the same neighbour, and be measured on the clock and
    the caches that this one leaves: on a GPU the same kernel under two names differed by 1%.
    """
    calls: list[str] = []
    implementations = [
        Implementation(name, sleeping(0.004, calls, name)) for name in ("honest", "b", "c")
    ]
    result = run.measure(product(), implementations, device="cpu", budget_s=0.4)
    rounds = min(len(row.samples) for row in result.rows)
    assert rounds >= 5
    start = len(calls) - sum(len(row.samples) for row in result.rows) - 3 * 2  # two checks at last
    timed = calls[start : start + 3 * rounds]
    # All of a round before the next one: samples at one index are of one round.
    assert all(len(set(timed[at : at + 3])) == 3 for at in range(0, len(timed), 3))
    assert len(set(pairwise(timed)) - {(name, name) for name in timed}) == 6


def test_a_slow_one_takes_few_samples_and_lets_the_others_go_on(
    run: Run, product: MakeCase
) -> None:
    calls: list[str] = []
    implementations = [
        Implementation("honest", torch.matmul),
        Implementation("slow", sleeping(0.1, calls, "S")),
    ]
    result = run.measure(product(), implementations, device="cpu", budget_s=0.05)
    fast, slow = result.rows
    assert len(slow.samples) == 3
    assert len(fast.samples) >= 5
    assert len(calls) == 9  # three checks, one to learn the pace, three samples, two checks


def test_the_budget_holds_for_one_that_becomes_slow(run: Run, product: MakeCase) -> None:
    calls = 0

    def tiring(a: Tensor, b: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        time.sleep(0.003 if calls <= 7 else 0.05)
        return a @ b

    result = run.measure(product(), [Implementation("honest", tiring)], device="cpu", budget_s=0.3)
    (row,) = result.rows
    # What calibration saw would make it 100 samples of 50 ms.
    assert row.status == "ok"
    assert 5 <= len(row.samples) <= 7


def test_short_calls_share_a_sample(run: Run, product: MakeCase) -> None:
    case = product(inputs=lambda g: (torch.ones(1),), reference=torch.neg)
    result = run.measure(case, [Implementation("honest", torch.neg)], device="cpu", budget_s=0.05)
    (row,) = result.rows
    assert row.calls > 100
    assert row.minimum is not None
    # 2 ms are aimed at; on a busy machine the calibration is off by some factor.
    assert 2e-4 < row.minimum * row.calls < 2e-2


def test_inputs_rotate(run: Run, product: MakeCase) -> None:
    seen: list[int] = []

    def function(a: Tensor, b: Tensor) -> Tensor:
        seen.append(a.data_ptr())
        return a @ b

    run.measure(product(), [Implementation("honest", function)], device="cpu", budget_s=0.02)
    timed = seen[2:-2]
    assert len(set(timed)) == 3
    # Within a sample; the next one may begin with any.
    assert all(one != other for one, other in pairwise(timed[5:50]))


def test_one_set_of_inputs_where_a_second_would_be_too_large(
    run: Run, product: MakeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "LARGEST_OF_SEVERAL", 0)
    seen: list[int] = []
    answers: dict[int, Tensor] = {}

    def function(a: Tensor, b: Tensor) -> Tensor:
        seen.append(a.data_ptr())
        return a @ b

    def cached(a: Tensor, b: Tensor) -> Tensor:
        return answers.setdefault(a.data_ptr(), a @ b).clone()

    implementations = [Implementation("honest", function), Implementation("cached", cached)]
    result = run.measure(product(), implementations, device="cpu", budget_s=0.02)
    assert [row.status for row in result.rows] == ["ok", "refused"]
    assert len(set(seen)) == 2  # one, and the last check's


def test_an_in_place_function_gets_the_same_contents_in_every_sample(
    run: Run, product: MakeCase
) -> None:
    largest = 0.0

    def double(a: Tensor, b: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, float(a.abs().max()))
        return a.mul_(2)

    case = product(reference=lambda a, b: 2 * a, inplace=True)
    result = run.measure(case, [Implementation("honest", double)], device="cpu", budget_s=0.05)
    assert result.rows[0].status == "ok"
    assert largest < 10  # doubled again and again, it would be infinite


def test_every_run_draws_other_numbers(run: Run, product: MakeCase) -> None:
    seeds = {
        run.measure(
            product(name=name), [Implementation("honest", torch.mm)], device="cpu", budget_s=0.01
        ).seed
        for name in "abc"
    }
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("late", "once", "takes"), [(0, False, 1), (1, False, 2), (9, False, 4), (9, True, 1)]
)
def test_a_late_launch_is_taken_again_but_not_for_ever_and_not_where_it_is_examined(
    monkeypatch: pytest.MonkeyPatch, late: int, once: bool, takes: int
) -> None:
    """With the clock of a GPU that is not here; test_timing_gpu.py has a real one."""
    outputs: list[Tensor] = []

    def timed(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[float, Tensor, bool]:
        outputs.append(function(*inputs))
        return len(outputs) * 1.0, outputs[-1], len(outputs) <= late

    monkeypatch.setattr(cuda, "_timed", timed)
    flush = cuda.Flush.__new__(cuda.Flush)
    flush.buffer, flush.seconds = torch.zeros(4), 1.0
    befores: list[int] = []
    x = torch.ones(2)
    seconds, returned = flush.timed(lambda x: x + 1, x, before=lambda: befores.append(1), once=once)
    assert (seconds, len(outputs), len(befores)) == (takes, takes, takes)
    assert returned is outputs[-1]
    assert torch.equal(returned, torch.full((2,), 2.0))
    assert all(output.isnan().all() for output in outputs[:-1])  # no later one can return these
    assert torch.equal(x, torch.ones(2))
