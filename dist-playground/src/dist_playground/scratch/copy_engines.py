"""Sums and gathers large buffers with the GPUs' copy engines: the processors go on computing.

NCCL moves data with a kernel, on processors that the backward's products want as well: a product
whose tiles just fit the whole GPU then takes two rounds. But moving between mapped memories is a
plain copy, which an engine of its own makes. For a sum each rank fetches its part of the others'
buffers and adds it up, and then everyone fetches the sums. Only the addition is a kernel.

All of it is queued on a stream beside the computation's.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dist_playground.grid import Axis
from dist_playground.mapped import Mapped, reachable

__all__ = ["Arena", "Done"]

STAGE = 2**24  # numbers that are fetched at a time before they are added


class Done:
    """The end of what was queued so far on the current stream."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> None:
        """Let the current stream wait."""
        torch.cuda.current_stream().wait_event(self._event)


class Arena:
    """Mapped memory for vectors that ranks sum or fill together; they make it together, too.

    A vector is [start, stop) of `flat`, in W parts of equal length. Calls queue their work after
    what the current stream has done, and must come in the same order on all ranks.
    """

    def __init__(self, axis: Axis, device: torch.device, numel: int, dtype: torch.dtype) -> None:
        self.axis = axis
        self._mapped = Mapped(axis, device, numel * dtype.itemsize)
        self._ranks = self._mapped.of_ranks(dtype)
        self._stage: Tensor | None = None
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.flat = self._ranks[axis.index]

    @classmethod
    def if_possible(
        cls, axis: Axis, device: torch.device, numel: int, dtype: torch.dtype
    ) -> "Arena | None":
        """None where the ranks cannot map each other's memory. Collective."""
        return cls(axis, device, numel, dtype) if reachable(axis, device) else None

    def reduce_scatter(self, start: int, stop: int) -> Done:
        """Sum the ranks' vectors; each rank its part."""
        with self._beside():
            self._sum_own_part(start, stop)
            self._mapped.barrier()  # until then the others read this rank's vector
            return Done()

    def all_reduce(self, start: int, stop: int) -> Done:
        """Sum the ranks' vectors."""
        with self._beside():
            self._sum_own_part(start, stop)
            self._fetch_others(start, stop)
            return Done()

    def all_gather(self, start: int, stop: int, part: Tensor) -> Done:
        """Fill the vector with every rank's part, rounded to the memory's dtype."""
        with self._beside():
            self._part(self.flat, start, stop, self.axis.index).copy_(part)
            self._fetch_others(start, stop)
            return Done()

    @contextmanager
    def _beside(self) -> Iterator[None]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(self._stream):
            yield

    def _sum_own_part(self, start: int, stop: int) -> None:
        self._mapped.barrier()  # everyone has written
        mine = self._part(self.flat, start, stop, self.axis.index)
        if self._stage is None:
            self._stage = torch.empty_like(self.flat[:STAGE])
        for rank in self._others():
            theirs = self._part(self._ranks[rank], start, stop, self.axis.index)
            for begin in range(0, len(mine), STAGE):
                give = theirs[begin : begin + STAGE]
                mine[begin : begin + STAGE] += self._stage[: len(give)].copy_(give)

    def _fetch_others(self, start: int, stop: int) -> None:
        self._mapped.barrier()  # everyone's part is there
        for rank in self._others():
            theirs = self._part(self._ranks[rank], start, stop, rank)
            self._part(self.flat, start, stop, rank).copy_(theirs)
        self._mapped.barrier()  # until then the others read this rank's part

    def _part(self, flat: Tensor, start: int, stop: int, rank: int) -> Tensor:
        length = (stop - start) // self.axis.size
        return flat[start + rank * length : start + (rank + 1) * length]

    def _others(self) -> list[int]:
        """The other ranks, beginning with the next one: no two ranks ask the same one first."""
        size = self.axis.size
        return [(self.axis.index + step) % size for step in range(1, size)]
