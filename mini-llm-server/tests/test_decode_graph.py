"""Which batch sizes have a CUDA graph; what the graphs give is tested in test_engine_gpu.py."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from mini_llm_server.engine.decode_graph import batch_sizes


def test_sizes_are_few_and_end_with_the_largest_batch() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(3) == [1, 2, 3]
    assert batch_sizes(32) == [1, 2, 4, 8, 16, 24, 32]
    assert batch_sizes(33) == [1, 2, 4, 8, 16, 24, 32, 33]
    assert batch_sizes(256) == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256]


@pytest.mark.parametrize("most", [1, 2, 7, 8, 9, 24, 25, 100, 512])
def test_no_batch_is_padded_to_twice_its_size(most: int) -> None:
    sizes = batch_sizes(most)
    assert sizes == sorted(set(sizes))
    for batch in range(1, most + 1):
        assert batch <= sizes[bisect_left(sizes, batch)] < 2 * batch
