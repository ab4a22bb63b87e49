"""Implementations that are fast because they are wrong: each is refused, and for its own reason."""

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from infra_bench import Case, Implementation, Measurement, Run

Measured = Callable[..., Measurement]
MakeCase = Callable[..., Case]


def refused(row: Measurement, because: str) -> None:
    assert row.status == "refused"
    assert re.search(because, row.reason)
    assert row.samples == ()
    assert (row.median, row.ratio, row.rate, row.error) == (None, None, None, None)


# What free memory held: poison, or what the allocator wrote over it.
UNWRITTEN = "not finite|relative error"


def test_an_honest_one_is_accepted(measured: Measured) -> None:
    row = measured(lambda a, b: (b.t() @ a.t()).t())
    assert row.status == "ok"
    assert row.error is not None
    assert 0 < row.error < 1e-6
    assert len(row.samples) >= 5
    assert row.ratio is not None
    assert row.ratio > 0


def test_nan_output(measured: Measured) -> None:
    refused(measured(lambda a, b: torch.full_like(a, float("nan"))), "not finite")


def test_one_nan_among_right_values(measured: Measured) -> None:
    def cheat(a: Tensor, b: Tensor) -> Tensor:
        out = a @ b
        out[-1, -1] = float("nan")
        return out

    refused(measured(cheat), "1 of 4096 values are not finite")


def test_one_infinity_among_right_values(measured: Measured) -> None:
    def cheat(a: Tensor, b: Tensor) -> Tensor:
        out = a @ b
        out[0, 0] = float("inf")
        return out

    refused(measured(cheat), "1 of 4096 values are not finite")


def test_answer_cached_by_address(measured: Measured) -> None:
    answers: dict[tuple[int, int], Tensor] = {}

    def cheat(a: Tensor, b: Tensor) -> Tensor:
        key = (a.data_ptr(), b.data_ptr())
        if key not in answers:
            answers[key] = a @ b
        return answers[key].clone()

    refused(measured(cheat), "relative error")


def test_answer_cached_by_address_and_version(measured: Measured) -> None:
    answers: dict[tuple[int, ...], Tensor] = {}

    def cheat(a: Tensor, b: Tensor) -> Tensor:
        key = (a.data_ptr(), a._version, b.data_ptr(), b._version)
        if key not in answers:
            answers[key] = a @ b
        return answers[key].clone()

    refused(measured(cheat), "relative error")


CHECKED = 3  # calls before the clock runs


def after(calls: int, then: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Be honest for some calls; then do something else with the last honest answer."""
    count = 0
    last = torch.empty(0)

    def cheat(a: Tensor, b: Tensor) -> Tensor:
        nonlocal count, last
        count += 1
        if count <= calls:
            last = a @ b
            return last.clone()
        return then(a, b, last)

    return cheat


@pytest.mark.parametrize("calls", [CHECKED, 4, 20, 100])
def test_answer_replayed_after_some_calls(measured: Measured, calls: int) -> None:
    row = measured(after(calls, lambda a, b, last: last.clone()))
    refused(row, "relative error")
    assert row.reason.startswith("in a timed call")


def test_correct_only_before_the_clock_runs(measured: Measured) -> None:
    refused(measured(after(CHECKED, lambda a, b, last: torch.zeros_like(a))), "in a timed call")


def test_correct_only_while_the_clock_runs(run: Run, product: MakeCase) -> None:
    # The calls of a slow function can be counted: 3 checks, 3 to calibrate, 5 timed, then checks.
    def slow(a: Tensor, b: Tensor) -> Tensor:
        time.sleep(0.02)
        return a @ b

    counted = after(CHECKED + 3 + 5, lambda a, b, last: torch.zeros_like(a))

    def cheat(a: Tensor, b: Tensor) -> Tensor:
        time.sleep(0.02)
        return counted(a, b)

    implementations = [Implementation("honest", slow), Implementation("other", cheat)]
    result = run.measure(product(), implementations, device="cpu", budget_s=0.08)
    assert result.rows[0].status == "ok"
    assert len(result.rows[0].samples) == 5
    refused(result.rows[1], "after timing: relative error")


def half(a: Tensor, b: Tensor) -> Tensor:
    out = torch.empty(len(a), b.shape[1])
    out[: len(a) // 2] = a[: len(a) // 2] @ b
    return out


def test_partial_write(measured: Measured) -> None:
    refused(measured(half), UNWRITTEN)


def test_output_left_unwritten(measured: Measured) -> None:
    refused(measured(lambda a, b: torch.empty_like(a)), UNWRITTEN)


@pytest.mark.parametrize("calls", [CHECKED, 30])
def test_unwritten_where_the_answer_of_an_honest_one_was(measured: Measured, calls: int) -> None:
    # Both get the same inputs: what the honest one's freed output held is the right answer.
    row = measured(after(calls, lambda a, b, last: torch.empty_like(a)))
    refused(row, "in a timed call: .*(not finite|relative error)")


def test_partial_write_over_the_last_right_answer(measured: Measured) -> None:
    # The unwritten half is what the allocator hands out again: the last answer, once freed.
    count = 0

    def cheat(a: Tensor, b: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return a @ b if count == 1 else half(a, b)

    refused(measured(cheat), UNWRITTEN)


def test_low_precision_passed_off_as_float32(measured: Measured) -> None:
    def to_tf32(each: Tensor) -> Tensor:
        """Keep ten bits of the mantissa, as tensor cores do with TF32."""
        return ((each.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    row = measured(lambda a, b: to_tf32(a) @ to_tf32(b))
    refused(row, "above the tolerance 1e-05")


def test_output_that_is_an_input(measured: Measured, product: MakeCase) -> None:
    case = product(reference=lambda a, b: a.t())
    honest = {"honest": lambda a, b: a.t().contiguous()}
    refused(measured(lambda a, b: a.t(), case, **honest), "shares memory with an input")


def test_same_output_buffer_every_time(measured: Measured) -> None:
    buffer = torch.empty(64, 64)
    refused(measured(lambda a, b: torch.matmul(a, b, out=buffer)), "same memory from every call")


def test_changed_input(measured: Measured) -> None:
    def cheat(a: Tensor, b: Tensor) -> Tensor:
        out = a @ b
        a[0, 0] = 0
        return out

    refused(measured(cheat), "changes its inputs")


def test_input_changed_only_in_timed_calls(measured: Measured) -> None:
    def then(a: Tensor, b: Tensor, last: Tensor) -> Tensor:
        out = a @ b
        a[0, 0] += 1
        return out

    refused(measured(after(CHECKED, then)), "in a timed call: changes its inputs")


def test_an_input_may_change_where_the_case_says_so(measured: Measured, product: MakeCase) -> None:
    case = product(reference=lambda a, b: a + b, inplace=True)
    row = measured(lambda a, b: a.add_(b), case, honest=lambda a, b: b.add_(a))
    assert (row.status, row.reason) == ("ok", "")


def test_an_in_place_function_that_does_nothing(measured: Measured, product: MakeCase) -> None:
    case = product(reference=lambda a, b: a + b, inplace=True)
    refused(measured(lambda a, b: a, case, honest=lambda a, b: a.add_(b)), "relative error")


def test_work_left_to_a_thread(measured: Measured) -> None:
    threads = []

    def cheat(a: Tensor, b: Tensor) -> Tensor:
        out = torch.empty_like(a)

        def work() -> None:
            time.sleep(0.05)
            torch.matmul(a, b, out=out)

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        return out

    refused(measured(cheat), UNWRITTEN)
    for thread in threads:
        thread.join()


def test_work_put_off_by_a_subclass(measured: Measured) -> None:
    class Lazy(Tensor):
        pass

    refused(measured(lambda a, b: (a @ b).as_subclass(Lazy)), "returns a Lazy")


@pytest.mark.parametrize(
    ("returned", "because"),
    [
        (lambda a, b: (a @ b).double(), "dtype is torch.float64, not torch.float32"),
        (lambda a, b: (a @ b).bfloat16(), "dtype is torch.bfloat16, not torch.float32"),
        (lambda a, b: (a @ b)[:-1], "shape is (63, 64), not (64, 64)"),
        (lambda a, b: (a @ b).flatten(), "shape is (4096,), not (64, 64)"),
        (lambda a, b: (a @ b, a), "returns 2 tensors, not 1"),
        (lambda a, b: (), "returns 0 tensors, not 1"),
        (lambda a, b: None, "returns NoneType"),
        (lambda a, b: [[1.0]], "returns list"),
        (lambda a, b: torch.empty(64, 64, device="meta"), "is on meta, not on cpu"),
    ],
)
def test_wrong_form(measured: Measured, returned: Callable[..., Any], because: str) -> None:
    row = measured(returned)
    assert row.status in ("refused", "failed")
    assert because in row.reason


def test_one_that_raises_is_failed_and_the_rest_goes_on(measured: Measured) -> None:
    def crash(a: Tensor, b: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this shape\nand a long story")

    row = measured(crash)
    assert (row.status, row.reason) == ("failed", "RuntimeError: no kernel for this shape")


def test_one_that_raises_in_a_timed_call(measured: Measured) -> None:
    def then(a: Tensor, b: Tensor, last: Tensor) -> Tensor:
        raise ValueError("out of luck")

    row = measured(after(30, then))
    assert (row.status, row.reason, row.samples) == ("failed", "ValueError: out of luck", ())


def special(generator: torch.Generator) -> tuple[Tensor, ...]:
    a = torch.randn(5, 7, generator=generator)
    a[1, 2], a[3, 3], a[4, 0] = float("nan"), float("inf"), -float("inf")
    return (a,)


def relu_case(make: MakeCase) -> Case:
    return make(inputs=special, reference=torch.relu, bytes=280.0, flops=0.0)


def test_nan_and_infinity_where_the_reference_has_them(
    measured: Measured, product: MakeCase
) -> None:
    row = measured(lambda a: a.clamp(min=0), relu_case(product), honest=torch.relu)
    assert (row.status, row.error) == ("ok", 0.0)


def test_nan_swallowed(measured: Measured, product: MakeCase) -> None:
    row = measured(
        lambda a: torch.relu(a).nan_to_num(0.0, float("inf")), relu_case(product), honest=torch.relu
    )
    refused(row, "1 of 35 values are not finite as the reference's are: 0.0 where nan is right")


def test_infinity_of_the_wrong_sign(measured: Measured, product: MakeCase) -> None:
    def cheat(a: Tensor) -> Tensor:
        out = torch.relu(a)
        return torch.where(out.isinf(), -out, out)

    row = measured(cheat, relu_case(product), honest=torch.relu)
    refused(row, "-inf where inf is right")


@pytest.fixture(
    params=[(0, 4), (1, 1), (3, 1, 2), ()], ids=["empty", "one", "three axes", "no axis"]
)
def shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


def test_odd_shapes(measured: Measured, product: MakeCase, shape: tuple[int, ...]) -> None:
    case = product(inputs=lambda g: (torch.randn(shape, generator=g),), reference=torch.sin)
    assert measured(lambda a: a.sin(), case, honest=torch.sin).status == "ok"


def test_strided_expanded_and_integer_inputs(measured: Measured, product: MakeCase) -> None:
    def draw(g: torch.Generator) -> tuple[Tensor, ...]:
        strided = torch.randn(6, 10, generator=g)[:, ::2]
        expanded = torch.randn(5, generator=g).expand(6, 5)
        index = torch.randint(0, 6, (9,), generator=g)
        return strided, expanded, index

    case = product(inputs=draw, reference=lambda a, b, i: (a + b)[i])
    row = measured(
        lambda a, b, i: a[i] + b[i], case, honest=lambda a, b, i: (a + b).index_select(0, i)
    )
    assert (row.status, row.error) == ("ok", row.error)
    cached: dict[int, Tensor] = {}
    other = product(name="again", inputs=draw, reference=lambda a, b, i: (a + b)[i])
    row = measured(
        lambda a, b, i: cached.setdefault(a.data_ptr(), (a + b)[i]).clone(),
        other,
        honest=lambda a, b, i: (a + b)[i],
    )
    refused(row, "relative error")


def test_gradients_can_be_measured(measured: Measured, product: MakeCase) -> None:
    def draw(g: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randn(33, generator=g, requires_grad=True), torch.randn(33, generator=g))

    def backward(x: Tensor, grad: Tensor) -> Tensor:
        (result,) = torch.autograd.grad(torch.nn.functional.gelu(x), x, grad)
        return result

    case = product(inputs=draw, reference=backward)
    assert measured(lambda x, g: backward(x, g), case, honest=backward).status == "ok"


def test_several_outputs_and_one_of_them_wrong(measured: Measured, product: MakeCase) -> None:
    case = product(reference=lambda a, b: (a + b, a - b))
    row = measured(
        lambda a, b: (a + b, b - a), case, honest=lambda a, b: (torch.add(a, b), torch.sub(a, b))
    )
    refused(row, "relative error 2")


def test_an_integer_answer(measured: Measured, product: MakeCase) -> None:
    case = product(reference=lambda a, b: (a + b).argmax(), tolerance=0.0)
    row = measured(
        lambda a, b: (a + b).argmax() + 1, case, honest=lambda a, b: (a + b).flatten().argmax()
    )
    refused(row, "relative error")
