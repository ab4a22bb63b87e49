"""Times and checks all-reduces: the backend's own, the ring and the tree, and peer memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dist_playground.collectives import ring_all_reduce, tree_all_reduce
from dist_playground.grid import Axis
from dist_playground.scratch.peer_memory import PeerMemory

__all__ = ["Timing", "bus_bandwidth", "measure"]


@dataclass(frozen=True)
class Timing:
    """One way to all-reduce tensors of one size."""

    name: str
    bytes: int
    seconds: list[float]  # of one call, several samples; of the slowest rank
    error: float  # largest difference from the float64 sum, relative to the largest value


def bus_bandwidth(bytes_: int, seconds: float, size: int) -> float:
    """Bytes a second that each rank must send whatever the algorithm: 2 (W-1)/W of the tensor."""
    return 2 * (size - 1) / size * bytes_ / seconds


def ways(axis: Axis, device: torch.device) -> dict[str, Callable[[Tensor], object]]:
    """Name -> a function that replaces its tensor by the sum over the axis."""
    backend = dist.get_backend(axis.group)
    found: dict[str, Callable[[Tensor], object]] = {
        backend: lambda x: dist.all_reduce(x, group=axis.group),
        "ring": lambda x: ring_all_reduce(x, axis),
        "tree": lambda x: tree_all_reduce(x, axis),
    }
    peers = PeerMemory.if_possible(axis, device)
    if peers is not None:
        found["peer memory"] = peers.all_reduce
    return found


def measure(axis: Axis, device: torch.device, sizes: list[int], samples: int = 5) -> list[Timing]:
    """Every way at every size in bytes, taking turns; collective."""
    everything = ways(axis, device)
    generator = torch.Generator(device=device).manual_seed(axis.index)
    found = []
    for size in sizes:
        x = torch.randn(size // 4, generator=generator, device=device)
        every = [torch.empty_like(x) for _ in range(axis.size)]
        dist.all_gather(every, x, group=axis.group)
        exact = sum((part.double() for part in every), torch.zeros((), device=device))
        calls = max(3, min(50, 2**26 // size))
        seconds: dict[str, list[float]] = {}
        error: dict[str, float] = {}
        for name, way in everything.items():
            if name == "peer memory" and size > 2**20:
                continue
            y = x.clone()
            way(y)
            error[name] = ((y - exact).abs().max() / exact.abs().max()).item()
            seconds[name] = []
        for _ in range(samples):
            for name in seconds:
                y.copy_(x)  # each call multiplies it by the number of ranks
                seconds[name].append(timed(everything[name], y, calls, device))
        for name, times in seconds.items():
            slowest = torch.tensor([*times, error[name]], dtype=torch.float64, device=device)
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=axis.group)
            *both, worst = slowest.tolist()
            found.append(Timing(name, size, both, worst))
    return found


def timed(way: Callable[[Tensor], object], y: Tensor, calls: int, device: torch.device) -> float:
    """Seconds of one of many calls after another, launched one by one as training does."""
    dist.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for _ in range(calls):
        way(y)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / calls
