"""Memory that the GPUs of one host have mapped into each other's address space.

torch's symmetric memory does the mapping, over NVLink or PCIe peer access: one allocation of equal
size on every rank of an axis. The others' are tensors like any other, only farther away. No
multicast.
"""

import os
import socket
import weakref
import zlib
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch import Tensor

from dist_playground.grid import Axis

__all__ = ["Mapped", "agreed", "mapped_bytes", "reachable"]

_held = 0
_found: dict[tuple[int, ...], bool] = {}  # by an axis' ranks


def mapped_bytes() -> int:
    """Bytes of this process's own mapped memory: torch's allocator does not count them."""
    return _held


def _forget(size: int) -> None:
    global _held
    _held -= size


class Mapped:
    """`size` bytes on every rank of an axis, zero at first; all ranks must make it together."""

    def __init__(self, axis: Axis, device: torch.device, size: int) -> None:
        global _held
        assert axis.group is not None
        self.own = symmetric_memory.empty(size, dtype=torch.uint8, device=device)
        self._handle = symmetric_memory.rendezvous(self.own, axis.group)
        self.addresses: list[int] = self._handle.buffer_ptrs
        self._axis = axis
        self._size = size
        _held += size
        weakref.finalize(self, _forget, size)
        self.own.zero_()
        self.barrier()  # nobody may write to another's before it is 0

    def of_ranks(self, dtype: torch.dtype) -> list[Tensor]:
        """Every rank's memory as a flat tensor, in order of rank."""
        numel = self._size // dtype.itemsize
        return [self._handle.get_buffer(rank, (numel,), dtype) for rank in range(self._axis.size)]

    def barrier(self) -> None:
        """On the current stream: after it all ranks see what any wrote before it."""
        self._handle.barrier()


def reachable(axis: Axis, device: torch.device) -> bool:
    """Whether all ranks of an axis can map each other's memory. Collective, alike on all ranks."""
    if axis.group is None or device.type != "cuda":
        return False
    if axis.ranks not in _found:
        _found[axis.ranks] = _promised(axis, device) and _kept(axis, device)
    return _found[axis.ranks]


def _promised(axis: Axis, device: torch.device) -> bool:
    mine = torch.tensor([_host(), device.index], device=device)
    everyone = [torch.empty_like(mine) for _ in range(axis.size)]
    dist.all_gather(everyone, mine, group=axis.group)
    places = torch.stack(everyone).tolist()
    ours = [index for host, index in places if host == _host()]
    possible = len(ours) == axis.size and all(
        index == device.index or torch.cuda.can_device_access_peer(device.index, index)
        for index in ours
    )
    # Some virtual machines promise access that never comes: what tells NCCL so counts here, too.
    return agreed(possible and os.environ.get("NCCL_P2P_DISABLE", "0") == "0", axis, device)


def _kept(axis: Axis, device: torch.device) -> bool:
    works = True
    try:
        probe = Mapped(axis, device, 4)
        torch.cuda.synchronize(device)  # its barrier has ended before it is unmapped
        del probe
    except RuntimeError as error:  # a container may forbid it
        reason = str(error).splitlines()[0]
        print(f"GPUs cannot map each other's memory, so NCCL moves all data: {reason}", flush=True)
        works = False
    return agreed(works, axis, device)


def agreed(wish: bool, axis: Axis, device: torch.device) -> bool:
    """Whether all ranks wish it: one alone in a rendezvous would wait for ever. Collective."""
    flag = torch.tensor(int(wish), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=axis.group)
    return bool(flag.item())


def _host() -> int:
    """A number that differs between hosts, and between containers with names of their own."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    name = socket.gethostname() + (boot.read_text() if boot.exists() else "")
    return zlib.crc32(name.encode())
