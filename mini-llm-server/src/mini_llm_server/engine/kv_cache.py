"""The paged KV cache's bookkeeping: a pool of equal blocks, and tables that name them in order.

A sequence's keys and values lie in blocks of `block_size` tokens anywhere in the pool, so memory
is handed out as a sequence grows and nothing is reserved for the longest possible answer (the
idea: PagedAttention, Kwon et al. 2023). Only numbers here; the tensor they index belongs to the
attention backend.
"""

from __future__ import annotations


class BlockPool:
    """Hands out and takes back blocks; at every moment `num_free + num_used == num_blocks`.

    A block table is a plain list of block numbers that the caller keeps; `grow` extends it and
    `release` empties it, and nothing else may change it.
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
        self._is_used = bytearray(num_blocks)

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that some table holds."""
        return self._is_used.count(1)

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks `num_tokens` tokens take."""
        return -(-num_tokens // self.block_size)

    def missing(self, table: list[int], num_tokens: int) -> int:
        """Return how many blocks the table lacks to hold `num_tokens` tokens."""
        return max(0, self.blocks_for(num_tokens) - len(table))

    def grow(self, table: list[int], num_tokens: int) -> bool:
        """Extend the table to hold `num_tokens` tokens: all of the blocks it lacks, or none.

        Returns:
            False, with nothing changed, if fewer blocks are free than it lacks.
        """
        missing = self.missing(table, num_tokens)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block = self._free.pop()
            self._is_used[block] = 1
            table.append(block)
        return True

    def release(self, table: list[int]) -> None:
        """Take back all blocks of the table and empty it.

        Raises:
            RuntimeError: a block in the table is already free, so two requests share or have
                shared it and the cache can no longer be trusted.
        """
        for block in reversed(table):
            if not self._is_used[block]:
                raise RuntimeError(f"block {block} is freed twice: two tables held it")
            self._is_used[block] = 0
            self._free.append(block)
        table.clear()

    def slot(self, table: list[int], position: int) -> int:
        """Return where in the pool the token at `position` of the sequence lies."""
        block, offset = divmod(position, self.block_size)
        return table[block] * self.block_size + offset
