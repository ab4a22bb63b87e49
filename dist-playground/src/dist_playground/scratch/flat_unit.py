"""A unit: parameters as one flat vector, of which each rank keeps a part and gathers the rest.

The vector lies in a slot, which units take in turns: after a unit has computed, the next but one
may gather its own weights there.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_playground.grid import Axis
from dist_playground.scratch.bucket import layout, padded
from dist_playground.scratch.copy_engines import Arena, Done
from dist_playground.scratch.single_tensor import all_gather

__all__ = ["Slot", "Slots", "Unit"]


class Slot:
    """Memory for the gathered weights of one unit at a time: an arena where there can be one."""

    def __init__(self, numel: int, dtype: torch.dtype, device: torch.device, axis: Axis) -> None:
        self.arena = Arena.if_possible(axis, device, numel, dtype)
        if self.arena is None:
            self.flat = torch.zeros(numel, dtype=dtype, device=device)
        else:
            self.flat = self.arena.flat
        self.owner: Unit | None = None

    def gather(self, shard: Tensor, axis: Axis) -> dist.Work | Done | None:
        """Start filling the front of it with all ranks' shards."""
        numel, index = len(shard) * axis.size, axis.index
        if self.arena is not None:
            return self.arena.all_gather(0, numel, shard)
        into = self.flat.data[:numel]
        mine = into[index * len(shard) : (index + 1) * len(shard)]
        with torch.no_grad():
            mine.copy_(shard)
        if axis.group is None:
            return None
        return all_gather(into, mine, axis.group)


class Slots:
    """Slots that units of one kind take in turns."""

    def __init__(self, dtype: torch.dtype, device: torch.device, axis: Axis) -> None:
        self._what = dtype, device, axis
        self._made: dict[tuple[object, ...], list[Slot]] = {}

    def next(self, kind: tuple[object, ...], most: int, numel: int) -> Slot:
        """A new one, or, when there are `most` of this kind, the one that waited longest."""
        made = self._made.setdefault(kind, [])
        made.append(made.pop(0) if len(made) == most else Slot(numel, *self._what))
        return made[-1]


class Unit:
    """Parameters that are gathered together; all of them trained or all frozen."""

    def __init__(self, named: dict[str, nn.Parameter], axis: Axis, slot: Slot) -> None:
        self.names = list(named)
        self.parameters = list(named.values())
        self.axis = axis
        self.slot = slot
        self.starts, numel = layout(self.parameters)
        self.numel = padded(numel, axis.size)
        self.length = self.numel // axis.size
        whole = torch.zeros(self.numel, device=self.parameters[0].device)
        for start, parameter in zip(self.starts, self.parameters, strict=True):
            whole[start : start + parameter.numel()] = parameter.detach().flatten()
            view = slot.flat[start : start + parameter.numel()].view(parameter.shape)
            # As `.data`, which shares memory but not the version counter: autograd would take the
            # next gather for a change of weights that it saved, though it brings the same ones.
            parameter.data = view
        low = axis.index * self.length
        self.shard = nn.Parameter(whole[low : low + self.length].clone())
        self.shard.requires_grad_(self.parameters[0].requires_grad)
        self._arriving: dist.Work | Done | None = None

    def gather(self) -> None:
        """Start bringing the weights, unless they are here or on their way."""
        if self.slot.owner is not self:
            self.slot.owner = self
            self._arriving = self.slot.gather(self.shard, self.axis)

    def wait(self) -> None:
        """Let the compute stream wait until the weights are here."""
        self.gather()
        if self._arriving is not None:
            self._arriving.wait()
            self._arriving = None

    def runs(self) -> list[tuple[int, int, int]]:
        """(parameter, start, stop in the flat vector) of what lies on this rank."""
        low = self.axis.index * self.length
        found = []
        for index, begin in enumerate(self.starts):
            start = max(low, begin)
            stop = min(low + self.length, begin + self.parameters[index].numel())
            if start < stop:
                found.append((index, start, stop))
        return found
