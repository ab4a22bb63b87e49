"""A unit: parameters as one flat vector, of which each rank keeps a part and gathers the rest.

The vector lies in a slot, which units take in turns: after a unit has computed, the next but one
may gather its own weights there.
"""

import torch
import torch.distributed as dist
from torch import nn

from dist_playground.grid import Axis
from dist_playground.scratch.bucket import layout, padded

__all__ = ["Slot", "Slots", "Unit"]


class Slot:
    """Memory for the gathered weights of one unit at a time."""

    def __init__(self, numel: int, dtype: torch.dtype, device: torch.device) -> None:
        self.flat = torch.zeros(numel, dtype=dtype, device=device)
        self.owner: Unit | None = None


class Slots:
    """Slots that units of one kind take in turns."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._made: dict[tuple[object, ...], list[Slot]] = {}

    def next(self, kind: tuple[object, ...], most: int, numel: int) -> Slot:
        """A new one, or, when there are `most` of this kind, the one that waited longest."""
        made = self._made.setdefault(kind, [])
        made.append(made.pop(0) if len(made) == most else Slot(numel, self.dtype, self.device))
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
        self._into = slot.flat.data[: self.numel]
        self._arriving: dist.Work | None = None

    def gather(self) -> None:
        """Start bringing the weights, unless they are here or on their way."""
        if self.slot.owner is self:
            return
        self.slot.owner = self
        low = self.axis.index * self.length
        mine = self._into[low : low + self.length]
        with torch.no_grad():
            mine.copy_(self.shard)
        if self.axis.group is not None:
            self._arriving = dist.all_gather_into_tensor(
                self._into, mine, group=self.axis.group, async_op=True
            )

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
