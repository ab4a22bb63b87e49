"""The process grid: which ranks work together on which dimension of parallelism.

A rank has one coordinate on each axis; ranks that differ only on an axis form that axis's group.
`tensor` is innermost, since it talks most: its ranks are neighbours on one host. `data` is
outermost, since it talks once a step (Narayanan et al. 2021, arXiv:2104.04473, section 3).
"""

import math
from dataclasses import dataclass

import torch.distributed as dist

from dist_playground.errors import UsageError

__all__ = ["AXES", "Axis", "Grid", "mesh_sizes"]

AXES = ("data", "pipeline", "context", "tensor")  # outermost first


@dataclass(frozen=True)
class Axis:
    """This rank's place on one axis, and the group of ranks that differ from it only there."""

    size: int
    index: int
    group: dist.ProcessGroup | None  # None: alone on this axis, nothing to say to anyone
    ranks: tuple[int, ...]  # global ranks of the group, in order of `index`


def mesh_sizes(text: str, world_size: int, default: str) -> dict[str, int]:
    """Parse "data=2,tensor=2"; an axis left out has size 1, and `default` takes what is left over.

    Raises UsageError for an unknown axis, a size below 1, or a product that is not `world_size`.
    """
    sizes = dict.fromkeys(AXES, 1)
    given = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in AXES or not value.isdecimal() or int(value) < 1 or name in given:
            raise UsageError(
                f"--mesh {text!r}: {part!r} is not one of {', '.join(AXES)} with a size, "
                "each at most once, as in data=2,tensor=2"
            )
        given[name] = int(value)
    sizes |= given
    product = math.prod(sizes.values())
    if default not in given and world_size % product == 0:
        sizes[default] = world_size // product
    elif product != world_size:
        raise UsageError(
            f"--mesh {text!r} does not fill the {world_size} ranks: its sizes multiply to "
            f"{product}; start {product} ranks, or change a size so that they multiply to "
            f"{world_size}"
        )
    return sizes


class Grid:
    """All axes of this rank. Collective: every rank of the world must build the same grid."""

    def __init__(self, sizes: dict[str, int], rank: int) -> None:
        self.sizes = {name: sizes.get(name, 1) for name in AXES}
        self.rank = rank
        self.size = math.prod(self.sizes.values())
        self.data = self._axis(("data",))
        self.pipeline = self._axis(("pipeline",))
        self.context = self._axis(("context",))
        self.tensor = self._axis(("tensor",))
        # Ranks that hold the same weights but train on other tokens: they sum gradients.
        self.replicas = self.data if self.context.size == 1 else self._axis(("data", "context"))

    def first_and_last(self) -> Axis | None:
        """The ranks of the first and the last pipeline stage; None on the ones between. Collective.

        They share one table where embedding and head are tied.
        """
        stages = self.sizes["pipeline"]
        axis = self.pipeline
        for ranks in self._groups(("pipeline",)):
            ends = (ranks[0], ranks[-1])
            group = axis.group if stages == 2 else dist.new_group(list(ends))
            if self.rank in ends:
                found = Axis(2, ends.index(self.rank), group, ends)
        return found if self.rank in (axis.ranks[0], axis.ranks[-1]) else None

    def coordinates(self, rank: int) -> dict[str, int]:
        """The rank's index on every axis."""
        found = {}
        for name in reversed(AXES):
            rank, found[name] = divmod(rank, self.sizes[name])
        return found

    def _axis(self, names: tuple[str, ...]) -> Axis:
        size = math.prod(self.sizes[name] for name in names)
        if size == 1:
            return Axis(1, 0, None, (self.rank,))
        mine: Axis | None = None
        for ranks in self._groups(names):
            # Every rank must take part in making every group, also those it is not in.
            group = dist.group.WORLD if len(ranks) == self.size else dist.new_group(ranks)
            if self.rank in ranks:
                mine = Axis(size, ranks.index(self.rank), group, tuple(ranks))
        assert mine is not None
        return mine

    def _groups(self, names: tuple[str, ...]) -> list[list[int]]:
        """All ranks, split into those that differ only on these axes."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.size):
            place = self.coordinates(rank)
            others = tuple(place[name] for name in AXES if name not in names)
            groups.setdefault(others, []).append(rank)
        return list(groups.values())
