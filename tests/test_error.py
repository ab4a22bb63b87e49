"""The relative error against NumPy in the plain formula, and on what a plain formula gets wrong."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra_bench import error
from infra_bench.error import RefusalError, relative_error

finite = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=50))
def test_equals_the_plain_formula(pairs: list[tuple[float, float]]) -> None:
    out, ref = (np.array(each) for each in zip(*pairs, strict=True))
    got = relative_error(torch.tensor(out, dtype=torch.float32), torch.tensor(ref))
    size = np.linalg.norm(ref)
    if size == 0:
        assert got == (0.0 if not out.any() else math.inf)
    else:
        assert got == pytest.approx(np.linalg.norm(out.astype(np.float32) - ref) / size, rel=1e-9)


@pytest.mark.parametrize("huge", [1e300, 1e-300])
def test_squares_neither_overflow_nor_vanish(huge: float) -> None:
    reference = torch.full((10,), huge, dtype=torch.float64)
    assert relative_error(reference * 1.5, reference) == pytest.approx(0.5)


def test_a_difference_beyond_float64_is_not_accepted() -> None:
    reference = torch.full((4,), 1.7e308, dtype=torch.float64)
    assert not relative_error(-reference, reference) <= 1.0


def test_an_error_in_the_last_chunk_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error, "CHUNK", 100)
    reference = torch.ones(1003, dtype=torch.float64)
    output = reference.to(torch.float32)
    output[-1] = 2
    assert relative_error(output, reference) == pytest.approx(1 / math.sqrt(1003))
    output[-1] = output[0] = float("nan")
    with pytest.raises(RefusalError, match="2 of 1003 values"):
        relative_error(output, reference)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["output", "reference"])
def test_a_non_finite_value_on_one_side_is_refused(value: float, where: str) -> None:
    right = torch.tensor([1.0, 2.0, value], dtype=torch.float64)
    plain = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    output, reference = (right, plain) if where == "output" else (plain, right)
    with pytest.raises(RefusalError, match="1 of 3 values"):
        relative_error(output, reference)
    assert relative_error(right, right) == 0


def test_overflow_to_infinity_in_half_precision_is_refused() -> None:
    with pytest.raises(RefusalError, match="inf where 100000 is right"):
        relative_error(torch.tensor([1e5]).half(), torch.tensor([1e5], dtype=torch.float64))


def test_a_transposed_output_is_compared_in_its_own_order() -> None:
    reference = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    assert relative_error(reference.t().contiguous().t(), reference) == 0
