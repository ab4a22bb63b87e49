"""The paged KV cache's bookkeeping: a pool of equal blocks, and tables that name them in order.

A sequence's keys and values lie in blocks of `block_size` tokens anywhere in the pool, so memory
is handed out as a sequence grows and nothing is reserved for the longest possible answer (the
idea: PagedAttention, Kwon et al. 2023). Blocks have reference counts: sequences that begin alike
share the blocks of what they have in common, and a block that nobody holds any more keeps what it
holds, for a later prompt that begins with it, until its memory is needed.

Only numbers here; the tensor they index belongs to the attention backend.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

BlockKey = bytes
Copy = tuple[int, int]  # (from block, to block)


def block_key(parent: BlockKey, token_ids: Sequence[int]) -> BlockKey:
    """Return the name of a full block's content: its tokens and all that came before them.

    Keys and values depend on the whole sequence up to them, so the name is a chain: the block's
    tokens with the name of the block before it (b"" for the first). A cryptographic hash, because
    two prompts with one name would read each other's memory, and prompts come from strangers.
    """
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


class BlockPool:
    """Hands out and takes back blocks; `num_free + num_cached + num_used == num_blocks`, always.

    A block is free (holds nothing), used (in one table or several), or cached (in no table, but
    its content has a name by which `match` finds it). Cached blocks are given away, the one that
    was released longest ago first, when no free block is left.

    A block table is a plain list of block numbers that the caller keeps; only the pool changes it.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}: the pool needs at least 1")
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}: a block holds at least 1 token")
        self.num_blocks = num_blocks
        self.block_size = block_size
        # A stack: the block freed last is reused first. It is the likeliest to be in a CPU's
        # cache, and blocks never needed stay untouched, so the OS never backs them with memory.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: dict[int, None] = {}  # in the order of their release
        self._references = [0] * num_blocks
        self._num_used = 0
        self._key_of: dict[int, BlockKey] = {}
        self._block_of: dict[BlockKey, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody holds, kept for what is in them."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks that some table holds."""
        return self._num_used

    @property
    def num_available(self) -> int:
        """Blocks that `extend` can hand out."""
        return len(self._free) + len(self._cached)

    def references(self, block: int) -> int:
        """Return how many tables hold the block."""
        return self._references[block]

    def is_named(self, block: int) -> bool:
        """Say whether `match` may find the block: then its content must not change."""
        return block in self._key_of

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks `num_tokens` tokens take."""
        return -(-num_tokens // self.block_size)

    def extend(self, table: list[int], start: int, end: int) -> list[Copy] | None:
        """Make room in the table for writing the tokens [start, end); the ones before are there.

        The block that `start` lies in may be shared with another sequence. It is then replaced by
        one of this table's own, and its content has to be copied before the step writes.

        Returns:
            The copies to make, at most one; or None, with nothing changed, if too few blocks are
            available.
        """
        block_size = self.block_size
        first = start // block_size
        missing = -(-end // block_size) - len(table)
        is_shared = first < len(table) and self._references[table[first]] > 1
        if max(0, missing) + is_shared > self.num_available:
            return None
        copies: list[Copy] = []
        if is_shared:
            copies.append((table[first], self._allocate()))
            self._references[table[first]] -= 1
            table[first] = copies[0][1]
        for _ in range(missing):
            table.append(self._allocate())
        return copies

    def fork(self, table: list[int]) -> list[int]:
        """Return a second table of the same blocks."""
        for block in table:
            self._references[block] += 1
        return list(table)

    def release(self, table: list[int], *, forget: bool = False) -> None:
        """Give up the table's hold on its blocks and empty it.

        Args:
            forget: their content is broken: keep none of it.

        Raises:
            RuntimeError: a block in the table is held by nobody, so two requests took it for
                their own and the cache can no longer be trusted.
        """
        # The last block first: it is then given away before those that it depends on.
        for block in reversed(table):
            if self._references[block] < 1:
                raise RuntimeError(f"block {block} is freed twice: two tables held it")
            self._references[block] -= 1
            if forget:
                self._unname(block)
            if self._references[block] == 0:
                self._num_used -= 1
                if block in self._key_of:
                    self._cached[block] = None
                else:
                    self._free.append(block)
        table.clear()

    def name(self, block: int, key: BlockKey) -> None:
        """Let `match` find a block from now on: all of it is written and will not change.

        A second block of the same content stays unnamed, and is free when it is released.
        """
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def match(self, keys: Sequence[BlockKey]) -> list[int]:
        """Return the blocks of the longest known beginning of a chain of keys."""
        blocks: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_idle(self, blocks: Sequence[int]) -> int:
        """Return how many of the matched blocks count as available as long as none takes them."""
        return sum(self._references[block] == 0 for block in blocks)

    def take(self, blocks: Sequence[int]) -> list[int]:
        """Return a table that holds the matched blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._cached[block]
                self._num_used += 1
            self._references[block] += 1
        return list(blocks)

    def slot(self, table: Sequence[int], position: int) -> int:
        """Return where in the pool the token at `position` of the sequence lies."""
        block, offset = divmod(position, self.block_size)
        return table[block] * self.block_size + offset

    def verify(self, tables: Sequence[Sequence[int]]) -> None:
        """Recount everything from the tables that exist; for tests and for a look at idle.

        Raises:
            RuntimeError: what is counted is not what the tables hold.
        """
        counts = [0] * self.num_blocks
        for table in tables:
            for block in table:
                counts[block] += 1
        used = {block for block, count in enumerate(counts) if count}
        free, cached = set(self._free), set(self._cached)
        named = set(self._key_of)
        consistent = (
            counts == self._references
            and len(used) == self._num_used
            and len(free) == len(self._free)
            and len(free) + len(cached) + len(used) == self.num_blocks
            and free | cached | used == set(range(self.num_blocks))
            and cached <= named <= cached | used
            and {key: block for block, key in self._key_of.items()} == self._block_of
        )
        if not consistent:
            raise RuntimeError(
                f"the block pool's books are wrong: {len(free)} free, {len(cached)} cached and "
                f"{self._num_used} used of {self.num_blocks} blocks, {len(used)} in tables"
            )

    def _allocate(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block = next(iter(self._cached))
            del self._cached[block]
            self._unname(block)
        self._references[block] = 1
        self._num_used += 1
        return block

    def _unname(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]
