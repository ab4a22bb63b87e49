"""Medians, quartiles and ratios against values worked out by hand and by the standard library."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra_bench.statistics import Summary, ratio, summarize

times = st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=40)


@given(times)
def test_quartiles_equal_the_standard_library(samples: list[float]) -> None:
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    got = summarize(samples)
    assert (got.q1, got.median, got.q3) == pytest.approx((q1, median, q3))


def test_one_sample_is_its_own_quartiles() -> None:
    assert summarize([3.0]) == Summary(3.0, 3.0, 3.0)


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        summarize([])


def test_half_the_time_is_a_ratio_of_two() -> None:
    assert ratio([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], "lower") == Summary(2.0, 2.0, 2.0)


def test_double_the_throughput_is_a_ratio_of_two() -> None:
    assert ratio([20.0, 20.0], [10.0, 10.0], "higher") == Summary(2.0, 2.0, 2.0)


def test_drift_that_hits_both_leaves_no_spread() -> None:
    drift = [1.0, 1.5, 2.0, 4.0, 3.0]
    got = ratio([2 * each for each in drift], drift, "lower")
    assert got == Summary(0.5, 0.5, 0.5)


def test_a_slow_one_is_paired_with_the_rounds_it_took_part_in() -> None:
    # The baseline ran on, and slower: its median moves, and the paired rounds do not.
    got = ratio([2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0], "lower")
    assert got == Summary(4.5, 0.5, 0.5)


@given(times)
def test_the_baseline_against_itself_is_one(samples: list[float]) -> None:
    got = ratio(samples, samples, "lower")
    assert got == Summary(1.0, 1.0, 1.0)


@pytest.mark.parametrize("bad", [[], [0.0, 1.0], [-1.0, 1.0]])
def test_no_ratio_from_what_is_not_positive(bad: list[float]) -> None:
    assert ratio(bad, [1.0, 1.0], "lower") is None
    assert ratio([1.0, 1.0], bad, "higher") is None
