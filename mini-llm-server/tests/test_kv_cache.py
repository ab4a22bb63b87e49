"""The block pool: exact accounting, sharing only of what is alike and written, all or nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mini_llm_server.engine.kv_cache import BlockPool, block_key


def keys_of(tokens: list[int], block_size: int) -> list[bytes]:
    keys: list[bytes] = []
    for end in range(block_size, len(tokens) + 1, block_size):
        keys.append(block_key(keys[-1] if keys else b"", tokens[end - block_size : end]))
    return keys


@given(
    num_blocks=st.integers(1, 12),
    block_size=st.integers(1, 5),
    operations=st.lists(
        st.tuples(
            st.sampled_from(["extend", "release", "forget", "fork", "name", "match"]),
            st.integers(0, 3),
            st.integers(0, 40),
        ),
        max_size=60,
    ),
)
def test_accounting_is_exact_whatever_grows_forks_and_is_released(
    num_blocks: int, block_size: int, operations: list[tuple[str, int, int]]
) -> None:
    pool = BlockPool(num_blocks, block_size)
    tables: list[list[int]] = [[], [], [], []]
    for what, who, number in operations:
        table, before = tables[who], list(tables[who])
        if what == "extend":
            start = min(number, len(before) * block_size)
            available = pool.num_available
            copies = pool.extend(table, start, number)
            is_shared = start < len(before) * block_size and any(
                before[start // block_size] in other
                for other in (*tables[:who], *tables[who + 1 :])
            )
            lacking = max(0, -(-number // block_size) - len(before)) + is_shared
            if lacking > available:
                assert (copies, table) == (None, before)
            else:
                assert copies is not None
                assert [source for source, _ in copies] == (
                    [before[start // block_size]] if is_shared else []
                )
                if start < number:  # where it writes, it is alone
                    assert all(pool.references(b) == 1 for b in table[start // block_size :][:1])
        elif what in ("release", "forget"):
            pool.release(table, forget=what == "forget")
            assert table == []
        elif what == "fork" and not tables[number % 4]:
            tables[number % 4] = pool.fork(table)
        elif what == "name" and table:
            pool.name(table[number % len(table)], bytes([number]))
        elif what == "match" and not table:
            tables[who] = pool.take(pool.match([bytes([number])]))
        pool.verify(tables)
        assert pool.num_free + pool.num_cached + pool.num_used == num_blocks
        assert pool.num_used == len({block for t in tables for block in t})


def test_a_released_block_is_found_again_until_its_memory_is_needed() -> None:
    pool = BlockPool(4, 2)
    keys = keys_of([1, 2, 3, 4, 5, 6], 2)
    table: list[int] = []
    pool.extend(table, 0, 6)
    blocks = list(table)
    assert pool.match(keys) == []  # allocated is not written
    for block, key in zip(blocks, keys, strict=True):
        pool.name(block, key)
    pool.release(table)
    assert (pool.num_free, pool.num_cached, pool.num_used) == (1, 3, 0)
    assert pool.match(keys) == blocks
    assert pool.match(keys_of([1, 2, 9, 9], 2)) == blocks[:1]
    assert pool.match(keys_of([3, 4], 2)) == []  # the same tokens after others are other values
    other: list[int] = []
    pool.extend(other, 0, 4)  # takes the free block and the end of the chain, not its beginning
    assert pool.match(keys) == blocks[:2]
    again = pool.take(pool.match(keys))
    assert pool.extend([], 0, 2) is None
    pool.verify([other, again])


def test_the_block_released_longest_ago_is_given_away_first() -> None:
    pool = BlockPool(3, 1)
    tables: list[list[int]] = [[], [], []]
    for i, table in enumerate(tables):
        pool.extend(table, 0, 1)
        pool.name(table[0], bytes([i]))
    for i in (1, 0, 2):
        pool.release(tables[i])
    pool.release(pool.take(pool.match([bytes([1])])))  # used again: now the youngest
    taken: list[int] = []
    pool.extend(taken, 0, 2)
    assert [bool(pool.match([bytes([i])])) for i in range(3)] == [False, True, False]


def test_a_fork_copies_the_block_it_writes_into_and_no_other() -> None:
    pool = BlockPool(8, 4)
    table: list[int] = []
    pool.extend(table, 0, 6)
    child = pool.fork(table)
    assert pool.num_used == 2
    copies = pool.extend(child, 6, 7)
    assert copies == [(table[1], child[1])]
    assert child[0] == table[0]
    assert child[1] != table[1]
    assert pool.extend(table, 6, 7) == []  # the other one is alone in its block now
    pool.verify([table, child])


def test_at_a_block_edge_a_fork_has_nothing_to_copy() -> None:
    pool = BlockPool(8, 4)
    table: list[int] = []
    pool.extend(table, 0, 8)
    child = pool.fork(table)
    assert pool.extend(child, 8, 9) == []
    assert child[:2] == table
    pool.verify([table, child])


def test_two_blocks_of_one_content_leave_one_name() -> None:
    pool = BlockPool(2, 2)
    (key,) = keys_of([1, 2], 2)
    tables: list[list[int]] = [[], []]
    for table in tables:
        pool.extend(table, 0, 2)
        pool.name(table[0], key)
    for table in tables:
        pool.release(table)
    assert (pool.num_free, pool.num_cached) == (1, 1)
    pool.verify([])


def test_broken_content_is_not_kept() -> None:
    pool = BlockPool(2, 2)
    (key,) = keys_of([1, 2], 2)
    table: list[int] = []
    pool.extend(table, 0, 2)
    pool.name(table[0], key)
    pool.release(table, forget=True)
    assert (pool.match([key]), pool.num_free) == ([], 2)


def test_a_block_freed_twice_is_refused() -> None:
    pool = BlockPool(4, 2)
    table: list[int] = []
    pool.extend(table, 0, 4)
    copy = list(table)
    pool.release(table)
    with pytest.raises(RuntimeError, match="freed twice"):
        pool.release(copy)


def test_a_recount_finds_a_leak() -> None:
    pool = BlockPool(4, 2)
    pool.extend([], 0, 4)  # a table that nobody keeps
    with pytest.raises(RuntimeError, match="books are wrong"):
        pool.verify([])


def test_slots_follow_the_table_over_block_edges() -> None:
    pool = BlockPool(8, 4)
    assert [pool.slot([5, 2], position) for position in range(8)] == [20, 21, 22, 23, 8, 9, 10, 11]


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0), (-1, 4)])
def test_an_empty_pool_is_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockPool(num_blocks, block_size)
