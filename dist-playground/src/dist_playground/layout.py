"""Where the numbers on this rank lie in the whole model's tensors: what checkpoints are made of.

A rank may hold a whole tensor, some rows or columns of it, or a run of a flat vector that begins
and ends in the middle of a row. All of these are rectangles of the whole tensor.
"""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["Piece", "Placement", "rectangles", "run_pieces"]


@dataclass(frozen=True)
class Placement:
    """A tensor on this rank as a rectangle of the whole model's tensor of this name."""

    name: str
    shape: tuple[int, ...]  # of the whole tensor
    offset: tuple[int, ...]  # where the rectangle begins in it
    # How many ranks with other coordinates than `data` and `context` hold this same rectangle.
    holders: int = 1


@dataclass(frozen=True)
class Piece:
    """A rectangle of a whole tensor, and the run of a flat tensor on this rank that holds it."""

    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    owner: Tensor  # its moments in the optimizer are laid out as it is
    start: int  # in the flattened owner

    def of(self, tensor: Tensor) -> Tensor:
        """The rectangle as a view of a tensor that is laid out as the owner is."""
        numel = math.prod(self.size)
        tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        return tensor.view(-1)[self.start : self.start + numel].view(self.size)


def rectangles(
    shape: tuple[int, ...], start: int, stop: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut the run [start, stop) of a flattened tensor into (offset, size) rectangles, in order.

    At most three for a matrix: the end of a row, whole rows, the beginning of a row.
    """
    if start >= stop:
        return []
    if len(shape) <= 1:
        return [((start,) * len(shape), (stop - start,) * len(shape))]
    inner = math.prod(shape[1:])
    first, last = start // inner, (stop - 1) // inner
    whole_first, whole_last = -(-start // inner), stop // inner
    if first == last and (start % inner or stop % inner):
        return _in_row(shape, first, start - first * inner, stop - first * inner)
    found = []
    if start % inner:
        found += _in_row(shape, first, start % inner, inner)
    if whole_first < whole_last:
        zeros = (0,) * (len(shape) - 1)
        found.append(((whole_first, *zeros), (whole_last - whole_first, *shape[1:])))
    if stop % inner:
        found += _in_row(shape, last, 0, stop % inner)
    return found


def _in_row(
    shape: tuple[int, ...], row: int, start: int, stop: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    parts = rectangles(shape[1:], start, stop)
    return [((row, *offset), (1, *size)) for offset, size in parts]


def run_pieces(
    placement: Placement,
    local_shape: tuple[int, ...],
    start: int,
    stop: int,
    owner: Tensor,
    at: int,
) -> list[Piece]:
    """The pieces of the run [start, stop) of a local tensor that lies at `at` in the owner."""
    found = []
    for offset, size in rectangles(local_shape, start, stop):
        whole = tuple(a + b for a, b in zip(placement.offset, offset, strict=True))
        found.append(Piece(placement.name, placement.shape, whole, size, owner, at))
        at += math.prod(size)
    return found
