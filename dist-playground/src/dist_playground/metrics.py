"""Tokens a second, peak memory, and bytes of model state on this rank."""

import resource
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dist_playground.mapped import mapped_bytes

__all__ = ["StepTimer", "local", "peak_memory", "state_bytes"]


class StepTimer:
    """Seconds from the end of one step to the end of the next, without holding the GPU up.

    On CUDA the marks are events in the stream: reading a clock on the CPU would time the launch,
    and synchronising every step would stop the CPU from running ahead.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._clock: list[float] = []

    def mark(self) -> None:
        """Note the end of a step; call once before the first."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._events.append(event)
        else:
            self._clock.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Duration of each step since the last call; waits for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            found = [a.elapsed_time(b) / 1e3 for a, b in pairwise(self._events)]
        else:
            found = [b - a for a, b in pairwise(self._clock)]
        self._events, self._clock = self._events[-1:], self._clock[-1:]
        return found

    def restart(self) -> None:
        """What happened since the last mark belongs to no step."""
        self._events.clear()
        self._clock.clear()
        self.mark()


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA the most that tensors held at once; on a CPU the process's peak size.

    The latter includes Python and torch's libraries, some hundreds of MiB.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) + mapped_bytes()
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: Linux carries it over exec, so a small process started by a big one
        # (torchrun, pytest) would report its parent's size.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS: bytes, elsewhere KiB


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this rank: a DTensor's shard, else the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def state_bytes(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Bytes of weights, gradients and optimizer moments on this rank: what sharding divides.

    Of the numbers that this rank steps, in float32. Call after a step, while gradients are there.
    """
    tensors: list[Tensor] = []
    for parameter in parameters:
        tensors.append(parameter)
        if parameter.grad is not None:
            tensors.append(parameter.grad)
        moments = optimizer.state[parameter].values()
        tensors += [value for value in moments if isinstance(value, Tensor)]
    return sum(local(tensor).nbytes for tensor in tensors)
