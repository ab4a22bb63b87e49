"""Times and checks all-reduces: the backend's own, the ring and the tree, and peer memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch import Tensor

from dist_playground.collectives import ring_all_reduce, tree_all_reduce
from dist_playground.grid import Axis
from dist_playground.scratch.peer_memory import PeerMemory

__all__ = ["Timing", "bus_bandwidth", "measure"]

AllReduce = Callable[[Tensor], object]  # replaces its tensor by the sum over the axis
SMALL = 2**20  # bytes that ways through peer memory have buffers for


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


def ways(axis: Axis, device: torch.device) -> dict[str, AllReduce]:
    """For tensors of any size, by name."""
    return {
        dist.get_backend(axis.group): lambda x: dist.all_reduce(x, group=axis.group),
        "ring": lambda x: ring_all_reduce(x, axis),
        "tree": lambda x: tree_all_reduce(x, axis),
    }


def small_ways(axis: Axis, device: torch.device) -> dict[str, AllReduce]:
    """For small tensors, of GPUs that can map each other's memory: ours, and torch's own."""
    peers = PeerMemory.if_possible(axis, device)
    if peers is None or axis.group is None:
        return {}
    buffer = symmetric_memory.empty(SMALL // 4, dtype=torch.float32, device=device)
    symmetric_memory.rendezvous(buffer, axis.group)
    group_name = axis.group.group_name

    def torch_one_shot(x: Tensor) -> None:
        torch.ops.symm_mem.one_shot_all_reduce_copy_out(
            buffer[: x.numel()], x, "sum", group_name, x
        )

    return {"peer memory": peers.all_reduce, "torch one-shot": torch_one_shot}


def measure(axis: Axis, device: torch.device, sizes: list[int], samples: int = 5) -> list[Timing]:
    """Every way at every size in bytes, taking turns; collective."""
    any_size, small = ways(axis, device), small_ways(axis, device)
    generator = torch.Generator(device=device).manual_seed(axis.index)
    found = []
    for size in sizes:
        x = torch.randn(size // 4, generator=generator, device=device)
        every = [torch.empty_like(x) for _ in range(axis.size)]
        dist.all_gather(every, x, group=axis.group)
        exact = sum((part.double() for part in every), torch.zeros((), device=device))
        calls = max(3, min(50, 2**26 // size))
        timers: dict[str, Callable[[], float]] = {}
        error: dict[str, float] = {}
        for name, way in (any_size | (small if size <= SMALL else {})).items():
            y = x.clone()
            way(y)
            error[name] = ((y - exact).abs().max() / exact.abs().max()).item()
            timers[name] = one_by_one(way, x, calls, device)
            if small and size <= SMALL and name not in ("ring", "tree"):
                timers[f"{name}, graph"] = as_graph(way, x, calls)
                error[f"{name}, graph"] = error[name]
        seconds: dict[str, list[float]] = {name: [] for name in timers}
        for _ in range(samples):
            for name, timer in timers.items():
                dist.barrier()
                seconds[name].append(timer())
        for name, times in seconds.items():
            slowest = torch.tensor([*times, error[name]], dtype=torch.float64, device=device)
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=axis.group)
            *both, worst = slowest.tolist()
            found.append(Timing(name, size, both, worst))
    return found


def one_by_one(way: AllReduce, x: Tensor, calls: int, device: torch.device) -> Callable[[], float]:
    """A timer: seconds of one of many calls after another, launched from Python as in training."""
    y = x.clone()

    def run() -> float:
        y.copy_(x)  # each call multiplies it by the number of ranks
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        for _ in range(calls):
            way(y)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - begin) / calls

    return run


def as_graph(way: AllReduce, x: Tensor, calls: int) -> Callable[[], float]:
    """A timer: the same calls as one CUDA graph, so without Python's and the driver's launches."""
    y = x.clone()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(calls):
            way(y)

    def run() -> float:
        y.copy_(x)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / calls

    return run
