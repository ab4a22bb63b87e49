"""Context parallel: a row's positions are cut over the ranks, and keys and values go round a ring.

Each rank keeps its queries. In W turns it sees every rank's keys and values once, and joins the
turns' results by their log-sum-exp, as FlashAttention joins blocks (Liu et al. 2023,
arXiv:2310.01889). While a turn is computed the next keys and values are on their way.

With a causal mask the rank of the last positions would work most and that of the first least. So
positions are cut into 2W chunks, and rank r has chunks r and 2W-1-r: all work equally long.

t positions of this rank, c = t / 2 of a chunk.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_playground.errors import UsageError
from dist_playground.grid import Axis

__all__ = ["check", "positions", "ring_attention"]


def chunks_of(rank: int, size: int) -> tuple[int, int]:
    """The two chunks of a rank, by number."""
    return rank, 2 * size - 1 - rank


def positions(T: int, axis: Axis, device: torch.device) -> Tensor:
    """The positions [t] of this rank in a row of T."""
    c = T // (2 * axis.size)
    starts = [chunk * c for chunk in chunks_of(axis.index, axis.size)]
    return torch.cat([torch.arange(start, start + c, device=device) for start in starts])


def check(sequence_length: int, size: int) -> None:
    """Raise UsageError unless positions divide into two chunks a rank."""
    if size > 1 and sequence_length % (2 * size):
        fits = -(-sequence_length // (2 * size)) * 2 * size
        raise UsageError(
            f"--sequence-length {sequence_length} does not divide into 2 chunks for each of the "
            f"{size} context-parallel ranks: use --sequence-length {fits}"
        )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def ring_attention(query_BHtK: Tensor, key_BHtK: Tensor, value_BHtK: Tensor, axis: Axis) -> Tensor:
    """Causal attention over all ranks' positions, for this rank's: [B, H, t, K]."""
    mixed: Tensor = _Ring.apply(query_BHtK, key_BHtK, value_BHtK, axis)  # type: ignore[no-untyped-call]
    return mixed


def pairs(axis: Axis, owner: int) -> list[tuple[int, int, bool]]:
    """(query chunk, key chunk, masked) that this rank computes with the owner's keys: 0 or 1."""
    found = []
    for i, mine in enumerate(chunks_of(axis.index, axis.size)):
        for j, theirs in enumerate(chunks_of(owner, axis.size)):
            if mine >= theirs:
                found.append((i, j, mine == theirs))
    return found


def scores(query_BHcK: Tensor, key_BHcK: Tensor, masked: bool) -> Tensor:
    """Scaled products [B, H, c, c], float32; -inf where a key is later than its query."""
    product = (query_BHcK @ key_BHcK.transpose(-2, -1)).float() * query_BHcK.shape[-1] ** -0.5
    if masked:
        c = product.shape[-1]
        later = torch.ones(c, c, dtype=torch.bool, device=product.device).triu(1)
        product = product.masked_fill(later, float("-inf"))
    return product  # type: ignore[no-any-return]


class Rotation:
    """Passes tensors to the next rank of the ring while this one computes."""

    def __init__(self, axis: Axis) -> None:
        self.axis = axis
        self.following = axis.ranks[(axis.index + 1) % axis.size]
        self.before = axis.ranks[(axis.index - 1) % axis.size]

    def start(self, give: Tensor) -> tuple[Tensor, list[dist.Work]]:
        """What the rank before gives, and what to wait for until it is here."""
        take = torch.empty_like(give)
        calls = [
            dist.P2POp(dist.isend, give, self.following, self.axis.group),
            dist.P2POp(dist.irecv, take, self.before, self.axis.group),
        ]
        return take, dist.batch_isend_irecv(calls)


def arrived(moving: tuple[Tensor, list[dist.Work]]) -> Tensor:
    """The tensor, when it is here."""
    tensor, works = moving
    for work in works:
        work.wait()
    return tensor


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, axis: Axis) -> Tensor:
        rotation = Rotation(axis)
        key_value = torch.stack((key, value))
        B, H, t, K = query.shape
        queries = query.unflatten(2, (2, t // 2)).unbind(2)  # type: ignore[no-untyped-call]
        out = query.new_zeros(2, B, H, t // 2, K, dtype=torch.float32)
        lse = query.new_full((2, B, H, t // 2, 1), float("-inf"), dtype=torch.float32)
        for turn in range(axis.size):
            more = turn + 1 < axis.size
            moving = rotation.start(key_value) if more else None
            keys, values = (x.unflatten(2, (2, t // 2)).unbind(2) for x in key_value)
            for i, j, masked in pairs(axis, (axis.index - turn) % axis.size):
                score = scores(queries[i], keys[j], masked)
                part_lse = score.logsumexp(-1, keepdim=True)
                part = (score - part_lse).exp().to(values[j].dtype) @ values[j]
                joined = torch.logaddexp(lse[i], part_lse)
                out[i] = out[i] * (lse[i] - joined).exp() + part * (part_lse - joined).exp()
                lse[i] = joined
            if moving is not None:
                key_value = arrived(moving)
        mixed = torch.cat((out[0], out[1]), dim=2).to(query.dtype)
        ctx.save_for_backward(query, key, value, mixed, lse)
        ctx.axis = axis
        return mixed

    @staticmethod
    def backward(ctx: Any, dmixed: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, mixed, lse = ctx.saved_tensors
        axis: Axis = ctx.axis
        rotation = Rotation(axis)
        half = query.shape[2] // 2
        key_value = torch.stack((key, value))
        dkey_value = torch.zeros_like(key_value, dtype=torch.float32)
        queries = query.unflatten(2, (2, half)).unbind(2)
        douts = dmixed.unflatten(2, (2, half)).unbind(2)  # type: ignore[no-untyped-call]
        dot = (dmixed.float() * mixed.float()).sum(-1, keepdim=True)
        dots = dot.unflatten(2, (2, half)).unbind(2)
        dquery = torch.zeros_like(query, dtype=torch.float32)
        dqueries = dquery.unflatten(2, (2, half)).unbind(2)  # type: ignore[no-untyped-call]
        scale = query.shape[-1] ** -0.5
        for turn in range(axis.size):
            more = turn + 1 < axis.size
            moving = rotation.start(key_value) if more else None
            keys, values = (x.unflatten(2, (2, half)).unbind(2) for x in key_value)
            dkeys, dvalues = (x.unflatten(2, (2, half)).unbind(2) for x in dkey_value)
            for i, j, masked in pairs(axis, (axis.index - turn) % axis.size):
                weight = (scores(queries[i], keys[j], masked) - lse[i]).exp()
                dvalues[j].add_(weight.to(query.dtype).transpose(-2, -1) @ douts[i])
                dweight = (douts[i] @ values[j].transpose(-2, -1)).float()
                dscore = (weight * (dweight - dots[i]) * scale).to(query.dtype)
                dqueries[i].add_(dscore @ keys[j])
                dkeys[j].add_(dscore.transpose(-2, -1) @ queries[i])
            # The gradient follows its keys and values, and after W turns is at their owner.
            dkey_value = arrived(rotation.start(dkey_value))
            if moving is not None:
                key_value = arrived(moving)
        dkey, dvalue = dkey_value.to(key.dtype)
        return dquery.to(query.dtype), dkey, dvalue, None
