"""Sizes that tensor parallelism cannot cut evenly are refused before anything starts."""

import pytest
from dist_playground.errors import UsageError
from dist_playground.model import MODELS
from dist_playground.tensor_parallel import check


@pytest.mark.parametrize("size", [1, 2, 4])
def test_sizes_that_divide_pass(size):
    check(MODELS["tiny"], 128, size)


def test_positions_that_do_not_divide_are_refused():
    with pytest.raises(UsageError, match=r"17 .* the 2 ranks: use --sequence-length 18"):
        check(MODELS["tiny"], 17, 2)


@pytest.mark.parametrize("size", [3, 8])
def test_heads_that_do_not_divide_are_refused(size):
    with pytest.raises(
        UsageError, match=f"4 heads .* {size} ranks: use --nproc-per-node 1 or 2 or 4"
    ):
        check(MODELS["tiny"], 128, size)
