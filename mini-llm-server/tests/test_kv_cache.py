"""The block pool: exact accounting, no block with two owners, all or nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mini_llm_server.engine.kv_cache import BlockPool


@given(
    num_blocks=st.integers(1, 12),
    block_size=st.integers(1, 5),
    operations=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.booleans())),
)
def test_accounting_is_exact_whatever_grows_and_is_released(
    num_blocks: int, block_size: int, operations: list[tuple[int, int, bool]]
) -> None:
    pool = BlockPool(num_blocks, block_size)
    tables: list[list[int]] = [[], [], [], []]
    for who, num_tokens, is_release in operations:
        table, before = tables[who], list(tables[who])
        if is_release:
            pool.release(table)
            assert table == []
        else:
            lacking = max(0, -(-num_tokens // block_size) - len(before))
            fits = lacking <= num_blocks - sum(map(len, tables))
            assert pool.grow(table, num_tokens) == fits
            assert table[: len(before)] == before
            assert len(table) == len(before) + (lacking if fits else 0)
        held = [block for t in tables for block in t]
        assert len(set(held)) == len(held), "a block has two owners"
        assert all(0 <= block < num_blocks for block in held)
        assert pool.num_used == len(held)
        assert pool.num_free == num_blocks - len(held)


def test_a_block_freed_twice_is_refused() -> None:
    pool = BlockPool(4, 2)
    table: list[int] = []
    pool.grow(table, 4)
    copy = list(table)
    pool.release(table)
    with pytest.raises(RuntimeError, match="freed twice"):
        pool.release(copy)


def test_slots_follow_the_table_over_block_edges() -> None:
    pool = BlockPool(8, 4)
    assert [pool.slot([5, 2], position) for position in range(8)] == [20, 21, 22, 23, 8, 9, 10, 11]


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0), (-1, 4)])
def test_an_empty_pool_is_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockPool(num_blocks, block_size)
