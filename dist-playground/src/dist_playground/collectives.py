"""Collectives made of send and receive, as NCCL and gloo make them: rings and a tree.

A ring moves the fewest bytes: an all-reduce of n numbers over W ranks sends 2 n (W-1)/W from
every rank, however many there are, in 2 (W-1) turns (Patarasuk and Yuan 2009). A tree needs only
2 log2(W) turns and so wins where a turn's latency is what costs, but its root's link carries n
numbers each way, for every child. Both add up in one fixed order, the same on every rank.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from dist_playground.grid import Axis

__all__ = ["ring_all_gather", "ring_all_reduce", "ring_reduce_scatter", "tree_all_reduce"]


def _turn(give: Tensor, take: Tensor, axis: Axis) -> None:
    """Send to the next rank of the ring while receiving from the one before."""
    calls = [
        dist.P2POp(dist.isend, give, axis.ranks[(axis.index + 1) % axis.size], axis.group),
        dist.P2POp(dist.irecv, take, axis.ranks[(axis.index - 1) % axis.size], axis.group),
    ]
    for work in dist.batch_isend_irecv(calls):
        work.wait()


def _parts(x: Tensor, axis: Axis) -> list[Tensor]:
    """One part a rank, of equal length but for the last ones."""
    length = -(-x.numel() // axis.size)
    flat = x.view(-1)
    return [flat[i * length : (i + 1) * length] for i in range(axis.size)]


def ring_reduce_scatter(x: Tensor, axis: Axis) -> Tensor:
    """Sum x over the ranks; rank r gets part r. Contiguous x of any shape; x is overwritten."""
    parts = _parts(x, axis)
    # Part p begins its way at rank p+1 and ends it at p, having passed everyone.
    for turn in range(axis.size - 1):
        give = parts[(axis.index - 1 - turn) % axis.size]
        mine = parts[(axis.index - 2 - turn) % axis.size]
        arriving = torch.empty_like(mine)
        _turn(give, arriving, axis)
        mine += arriving
    return parts[axis.index]


def ring_all_gather(x: Tensor, axis: Axis) -> None:
    """Fill contiguous x on every rank: part r of it is rank r's."""
    parts = _parts(x, axis)
    for turn in range(axis.size - 1):
        give = parts[(axis.index - turn) % axis.size]
        _turn(give, parts[(axis.index - turn - 1) % axis.size], axis)


def ring_all_reduce(x: Tensor, axis: Axis) -> None:
    """Replace x on every rank by the sum: each rank sums a part, then all parts go round."""
    ring_reduce_scatter(x, axis)
    ring_all_gather(x, axis)


def tree_all_reduce(x: Tensor, axis: Axis) -> None:
    """Replace x on every rank by the sum: up a binomial tree to rank 0, and down again."""
    arriving = torch.empty_like(x)
    step = 1
    while step < axis.size:
        if axis.index % (2 * step) == step:
            dist.send(x, axis.ranks[axis.index - step], axis.group)
            break
        if axis.index + step < axis.size:
            dist.recv(arriving, axis.ranks[axis.index + step], axis.group)
            x += arriving
        step *= 2
    # `step` is now the distance to the parent; the children are nearer.
    if axis.index:
        dist.recv(x, axis.ranks[axis.index - step], axis.group)
    while step > 1:
        step //= 2
        if axis.index + step < axis.size:
            dist.send(x, axis.ranks[axis.index + step], axis.group)
