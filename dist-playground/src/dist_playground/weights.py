"""The whole model's weights on rank 0, put together from the pieces that lie on the ranks."""

import torch
import torch.distributed as dist
from torch import Tensor

from dist_playground.strategy import Parallel

__all__ = ["whole_weights"]


def whole_weights(parallel: Parallel) -> dict[str, Tensor]:
    """Named as in GPT, on the CPU; empty on other ranks than 0. All ranks must call it."""
    mine = [
        (piece.name, piece.shape, piece.offset, piece.of(piece.owner.detach()).cpu().clone())
        for piece in parallel.pieces()
    ]
    rank, size = dist.get_rank(), dist.get_world_size()
    everyone: list[list[tuple[str, tuple[int, ...], tuple[int, ...], Tensor]] | None]
    everyone = [None] * size
    dist.gather_object(mine, everyone if rank == 0 else None)
    whole: dict[str, Tensor] = {}
    for pieces in everyone:
        for name, shape, offset, part in pieces or []:
            target = whole.setdefault(name, torch.full(shape, float("nan")))
            place = tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))
            target[place] = part
    return whole
