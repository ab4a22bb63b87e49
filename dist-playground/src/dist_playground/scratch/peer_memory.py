"""A small all-reduce that reads the other GPUs' memory instead of asking a library to send it.

NCCL needs some time to get going, whatever the size. With memory that the GPUs of a host have
mapped one kernel that writes, signals, waits and reads does the whole sum (peer_kernel.py). All
ranks add up in the same order and so get the same bits.

As the GPU needs only a few microseconds, most of the time would be Triton's own launch from
Python; so a kernel that was compiled once is launched by its handle.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from dist_playground.grid import Axis
from dist_playground.mapped import Mapped, agreed, reachable

__all__ = ["PeerMemory"]

TILE = 2**14  # bytes of a tensor that one program of the kernel sums
DTYPES = frozenset(
    (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32)
)


class PeerMemory:
    """Mapped buffers for tensors of up to `most` bytes; all ranks of an axis must make it together.

    Calls must follow one another, on one stream and alike on all ranks, as with any collective.
    """

    def __init__(self, axis: Axis, device: torch.device, most: int = 2**20) -> None:
        self.most = most
        self.axis = axis
        flags = most // TILE * axis.size * 4  # int32: one a tile and rank
        self._mapped = Mapped(axis, device, 2 * most + flags)
        self._peers = torch.tensor(self._mapped.addresses, device=device)
        self._launchers: dict[tuple[torch.dtype, bool, int], Callable[[int, int], None]] = {}

    @classmethod
    def if_possible(cls, axis: Axis, device: torch.device) -> "PeerMemory | None":
        """None where the ranks cannot all map each other's memory, or lack Triton. Collective."""
        possible = reachable(axis, device)
        possible = possible and agreed(find_spec("triton") is not None, axis, device)
        return cls(axis, device) if possible else None

    def fits(self, x: Tensor) -> bool:
        """Whether the tensor is small enough, dense, and of a type that the kernel adds up."""
        return 0 < x.nbytes <= self.most and x.is_contiguous() and x.dtype in DTYPES

    def all_reduce(self, x: Tensor, maximum: bool = False) -> None:
        """Replace x by its sum, or largest value, over all ranks; `fits(x)` must hold.

        Types of 16 bits are added up in float32 and rounded once. NaN on one rank is NaN on all.
        """
        programs = -(-x.nbytes // TILE)
        launch = self._launchers.get((x.dtype, maximum, programs))
        if launch is None:
            launch = self._compile(x, maximum, programs)
        launch(x.data_ptr(), x.numel())

    def _compile(self, x: Tensor, maximum: bool, programs: int) -> Callable[[int, int], None]:
        from dist_playground.scratch.peer_kernel import all_reduce_kernel

        constants = (self.axis.index, self.axis.size, TILE // x.element_size(), self.most, maximum)
        compiled = all_reduce_kernel.warmup(
            self._peers, *constants, x, x.numel(), grid=(programs,), num_warps=8
        )
        launch = partial(compiled[programs, 1, 1], self._peers.data_ptr(), *constants)
        self._launchers[x.dtype, maximum, programs] = launch
        return launch
