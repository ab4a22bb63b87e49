"""The sampler: one token for each row of logits, once `logits.adjust` has changed them.

Each request draws one uniform number from its own generator for each token and looks it up in
the cumulative distribution of its row. So its draws depend on its seed and on how many tokens it
has, never on its neighbours or on the device, and the work on the logits is one batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mini_llm_server.engine.request import Request

# Rows with top_k or top_p look at so many most likely tokens first, then at more, and only those
# whose mass lies wider still are sorted in full: a sort of the whole vocabulary for every row would
# cost more than the model's output projection.
_CANDIDATES = (256, 4096)
_SMALLEST_TEMPERATURE = 1e-30  # float32 has it, and divides every difference into infinity


def sample(logits_SV: Tensor, requests: Sequence[Request]) -> list[int | None]:
    """Return a token for each row of logits [S, V], in the order of `requests`.

    A row without a usable maximum (NaN, +inf, or all -inf) gives None: that request's numbers
    broke, which says nothing about its neighbours.
    """
    best = logits_SV.max(dim=-1)  # a NaN anywhere in a row is its maximum, so one pass sees it
    tokens: list[int | None] = list(best.indices.tolist())
    usable = torch.isfinite(best.values).tolist()
    drawn = [i for i, r in enumerate(requests) if usable[i] and r.params.temperature > 0]
    for i, ok in enumerate(usable):
        if not ok:
            tokens[i] = None
    wide = [i for i in drawn if not _is_filtered(requests[i])]
    filtered = [i for i in drawn if _is_filtered(requests[i])]
    for rows, choose in ((wide, _draw_wide), (filtered, _draw_filtered)):
        if rows:
            chosen = choose(logits_SV[rows], best.values[rows], [requests[i] for i in rows])
            for i, token in zip(rows, chosen, strict=True):
                tokens[i] = token
    return tokens


def _is_filtered(request: Request) -> bool:
    return request.params.top_k > 0 or request.params.top_p < 1


def _weights(logits: Tensor, maximum: Tensor, requests: Sequence[Request]) -> Tensor:
    """Return exp((logit - max) / temperature), at least in float32; a row's largest is exactly 1.

    The maximum goes first, so that a tiny temperature gives zeros instead of inf - inf. A weight is
    the share of the likeliest token's probability that min_p (Nguyen et al. 2024) speaks of.
    """
    kind = torch.promote_types(logits.dtype, torch.float32)
    logits = logits.to(kind)
    temperature = [max(r.params.temperature, _SMALLEST_TEMPERATURE) for r in requests]
    scale = _column(temperature, logits).to(kind)
    weights = (logits - maximum.to(kind)[:, None]).div_(scale).exp_()
    if any(r.params.min_p for r in requests):
        min_p = _column([r.params.min_p for r in requests], logits).to(kind)
        weights = weights.masked_fill(weights < min_p, 0.0)
    return weights


def _draw_wide(logits: Tensor, maximum: Tensor, requests: Sequence[Request]) -> list[int]:
    # In float64, a sum over 10^5 tokens does not lose the unlikely ones.
    cumulative = _weights(logits, maximum, requests).cumsum(-1, dtype=torch.float64)
    return _pick(cumulative, cumulative[:, -1:], requests)[:, 0].tolist()


def _draw_filtered(logits: Tensor, maximum: Tensor, requests: Sequence[Request]) -> list[int]:
    """Draw from the top_k most likely tokens, then from the top_p of those."""
    V = logits.shape[-1]
    weights = _weights(logits, maximum, requests)
    top_k = torch.tensor([r.params.top_k or V for r in requests], device=logits.device)[:, None]
    top_p = _column([r.params.top_p for r in requests], logits)
    sums = weights.sum(-1, keepdim=True, dtype=torch.float64)
    chosen = [0] * len(requests)
    left = torch.arange(len(requests), device=logits.device)  # rows whose mass lies wider
    for count in (*(c for c in _CANDIDATES if c < V), V):
        sorted_weights, order = weights[left].topk(count, dim=-1)
        rank = torch.arange(count, device=logits.device)
        kept = torch.where(rank < top_k[left], sorted_weights.double(), 0.0)
        cumulative = kept.cumsum(-1)
        # The mass that top_p is a share of: what top_k leaves, or the whole row.
        is_cut = top_k[left] <= count
        total = torch.where(is_cut, cumulative[:, -1:], sums[left])
        wanted = top_p[left] * total
        enough = is_cut | ((top_k[left] == V) & (cumulative[:, -1:] >= wanted))
        enough = enough[:, 0] if count < V else torch.ones_like(left, dtype=torch.bool)
        nucleus = torch.where(cumulative - kept < wanted, kept, 0.0).cumsum(-1)[enough]
        rows = left[enough].tolist()
        if rows:
            column = _pick(nucleus, nucleus[:, -1:], [requests[row] for row in rows])
            tokens = order[enough].gather(-1, column)[:, 0].tolist()
            for row, token in zip(rows, tokens, strict=True):
                chosen[row] = token
        left = left[~enough]
        if not len(left):
            break
    return chosen


def _pick(cumulative: Tensor, total: Tensor, requests: Sequence[Request]) -> Tensor:
    """Return [S, 1] columns whose share of the cumulative weights each request's number hits.

    Numbers of at most 1 - 2^-32 and `right=True` never reach a column of weight zero.
    """
    uniform = _column([r.rng.getrandbits(32) / 2**32 for r in requests], cumulative)
    return torch.searchsorted(cumulative, uniform * total, right=True)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]
