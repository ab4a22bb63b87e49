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


def ways(axis: Axis) -> dict[str, AllReduce]:
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
    any_size, small = ways(axis), small_ways(axis, device)
    generator = torch.Generator(device=device).manual_seed(axis.index)
    found = []
    for size in sizes:
        x = torch.randn(size // 4, generator=generator, device=device)
        every = [torch.empty_like(x) for _ in range(axis.size)]
        dist.all_gather(every, x, group=axis.group)
        exact = sum((part.double() for part in every), torch.zeros((), device=device))
        # Each call multiplies the numbers by the ranks: not so often that they overflow.
        calls = max(3, min(100 // axis.size, 2**26 // size))
        runs: dict[str, Calls] = {}
        for name, way in (any_size | (small if size <= SMALL else {})).items():
            runs[name] = Calls(way, x, calls)
            if small and size <= SMALL and name not in ("ring", "tree"):
                runs[f"{name}, graph"] = GraphedCalls(way, x, calls)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(samples + 1):
            for name, run in runs.items():
                dist.barrier()
                took = run()
                if turn:  # the first is to warm up
                    seconds[name].append(took)
        for name, run in runs.items():
            sums = run.numbers.double() / axis.size ** (calls - 1)
            error = ((sums - exact).abs().max() / exact.abs().max()).item()
            slowest = torch.tensor([*seconds[name], error], dtype=torch.float64, device=device)
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=axis.group)
            *both, worst = slowest.tolist()
            found.append(Timing(name, size, both, worst))
    return found


class Calls:
    """Many calls after one another, launched from Python as in training; gives a call's seconds."""

    def __init__(self, way: AllReduce, x: Tensor, calls: int) -> None:
        self.way, self.calls = way, calls
        self._start = x
        self.numbers = x.clone()

    def __call__(self) -> float:
        """Replace the numbers by their sum, and that by its sum, and so on."""
        self.numbers.copy_(self._start)
        self._synchronise()
        begin = time.perf_counter()
        self.launch()
        self._synchronise()
        return (time.perf_counter() - begin) / self.calls

    def launch(self) -> None:
        """All calls."""
        for _ in range(self.calls):
            self.way(self.numbers)

    def _synchronise(self) -> None:
        if self.numbers.is_cuda:
            torch.cuda.synchronize(self.numbers.device)


class GraphedCalls(Calls):
    """The same as one CUDA graph: without Python's and the driver's time for each launch."""

    def __init__(self, way: AllReduce, x: Tensor, calls: int) -> None:
        super().__init__(way, x, calls)
        way(self.numbers)  # a first call may load or compile what a capture must not
        self._synchronise()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            super().launch()

    def launch(self) -> None:
        """All calls."""
        self._graph.replay()
