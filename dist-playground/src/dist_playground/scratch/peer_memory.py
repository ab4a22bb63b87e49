"""A small all-reduce that reads the other GPUs' memory instead of asking a library to send it.

NCCL needs some 50 microseconds to get going, whatever the size. GPUs of one host can map each
other's memory (torch's symmetric memory, over NVLink or PCIe peer access): every rank copies its
tensor into its own mapped buffer, all wait at one barrier, and each adds up all buffers, in order
of rank, so that all get the same bits. That is three small kernels.

Two buffers take turns, so that one barrier a call is enough: a rank writes to a buffer again only
after the next call's barrier, which no rank reaches before it has read this one. No multicast.
"""

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch import Tensor

from dist_playground.grid import Axis

__all__ = ["PeerMemory"]


class PeerMemory:
    """Buffers of `most` bytes on every rank of an axis; all ranks must make it together."""

    def __init__(self, axis: Axis, device: torch.device, most: int = 2**20) -> None:
        assert axis.group is not None
        self.most = most
        own = symmetric_memory.empty(2 * most, dtype=torch.uint8, device=device)
        self._handle = symmetric_memory.rendezvous(own, axis.group)
        self._buffers = [
            self._handle.get_buffer(rank, (2, most), torch.uint8) for rank in range(axis.size)
        ]
        self._index = axis.index
        self._turn = 0
        self._views: dict[tuple[int, int, torch.dtype], list[Tensor]] = {}

    @classmethod
    def if_possible(cls, axis: Axis, device: torch.device) -> "PeerMemory | None":
        """None where the ranks cannot all map each other's memory. Collective."""
        if axis.group is None or device.type != "cuda":
            return None
        here = torch.cuda.device_count()
        mapped = here >= axis.size and all(
            peer == device.index or torch.cuda.can_device_access_peer(device.index, peer)
            for peer in range(here)
        )
        # All or none: a rank alone in the rendezvous would wait for ever.
        flag = torch.tensor(int(mapped), device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=axis.group)
        return cls(axis, device) if flag.item() else None

    def fits(self, x: Tensor) -> bool:
        """Whether the tensor is small enough and dense."""
        return 0 < x.numel() * x.element_size() <= self.most and x.is_contiguous()

    def _halves(self, x: Tensor) -> list[Tensor]:
        key = (self._turn, x.numel(), x.dtype)
        if key not in self._views:
            size = x.numel() * x.element_size()
            self._views[key] = [b[self._turn, :size].view(x.dtype) for b in self._buffers]
        return self._views[key]

    @torch.no_grad()
    def all_reduce(self, x: Tensor, maximum: bool = False) -> None:
        """Replace x by its sum, or largest value, over all ranks; `fits(x)` must hold."""
        self._turn ^= 1
        views, flat = self._halves(x), x.view(-1)
        views[self._index].copy_(flat)
        self._handle.barrier(channel=self._turn)
        join = torch.maximum if maximum else torch.add
        join(views[0], views[1], out=flat)
        for view in views[2:]:
            join(flat, view, out=flat)
