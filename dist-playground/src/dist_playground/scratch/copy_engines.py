"""Sums large buffers with the GPUs' copy engines, so that the processors go on computing.

NCCL moves data with a kernel, on processors that the backward's products want as well: a product
whose tiles just fit the whole GPU then takes two rounds. But moving between mapped memories is a
plain copy, which an engine of its own makes. Each rank fetches its part of the others' buffers and
adds it up, and then everyone fetches the sums. Only the addition is a kernel.

All of it is queued on a stream beside the computation's.
"""

import torch

from dist_playground.grid import Axis
from dist_playground.mapped import Mapped, reachable

__all__ = ["Arena", "Summed"]

STAGE = 2**24  # numbers that are fetched at a time before they are added


class Summed:
    """What a bucket waits for."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> None:
        """Let the current stream wait."""
        torch.cuda.current_stream().wait_event(self._event)


class Arena:
    """Mapped float32 memory for buffers that are summed; all ranks of the axis make it together."""

    def __init__(self, axis: Axis, device: torch.device, numel: int) -> None:
        self.axis = axis
        self._mapped = Mapped(axis, device, 4 * numel)
        self._ranks = self._mapped.of_ranks(torch.float32)
        self._stage = torch.empty(min(STAGE, numel), device=device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.flat = self._ranks[axis.index]

    @classmethod
    def if_possible(cls, axis: Axis, device: torch.device, numel: int) -> "Arena | None":
        """None where the ranks cannot map each other's memory. Collective."""
        return cls(axis, device, numel) if reachable(axis, device) else None

    def reduce_scatter(self, start: int, stop: int) -> Summed:
        """Sum [start, stop) of all ranks' memory, each rank its part of it, which W divides."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(self._stream):
            self._sum_part(start, stop)
            self._mapped.barrier()  # until then the others read this rank's
            return Summed()

    def all_reduce(self, start: int, stop: int) -> Summed:
        """Sum [start, stop) of all ranks' memory, which W divides."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(self._stream):
            self._sum_part(start, stop)
            self._mapped.barrier()
            length = (stop - start) // self.axis.size
            for rank in self._others():
                low = start + rank * length
                self.flat[low : low + length].copy_(self._ranks[rank][low : low + length])
            self._mapped.barrier()
            return Summed()

    def _sum_part(self, start: int, stop: int) -> None:
        self._mapped.barrier()  # everyone has written
        length = (stop - start) // self.axis.size
        low = start + self.axis.index * length
        for rank in self._others():
            for begin in range(low, low + length, STAGE):
                end = min(begin + STAGE, low + length)
                fetched = self._stage[: end - begin].copy_(self._ranks[rank][begin:end])
                self.flat[begin:end] += fetched

    def _others(self) -> list[int]:
        """The other ranks, beginning with the next one: no two ranks ask the same one first."""
        size = self.axis.size
        return [(self.axis.index + step) % size for step in range(1, size)]
