"""What requests ask to be done to their logits before a token is drawn from them.

A step's rows are changed all at once, by lists of (row, token) pairs; a batch in which nobody
asks for anything is passed through untouched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mini_llm_server.engine.request import Request, TokenLogprobs
from mini_llm_server.engine.structure import forbidden


def adjust(logits_SV: Tensor, requests: Sequence[Request], eos_token_ids: frozenset[int]) -> Tensor:
    """Apply structures, min_tokens, biases and penalties, in this order.

    Args:
        logits_SV: left as it is, because log-probabilities are computed from it.
        eos_token_ids: tokens that min_tokens holds back.

    Returns:
        The changed logits; the argument itself if nobody asked for a change.
    """
    structured = [i for i, r in enumerate(requests) if r.matcher is not None]
    early = [i for i, r in enumerate(requests) if r.num_output_tokens < r.params.min_tokens]
    biased = [i for i, r in enumerate(requests) if r.params.logit_bias]
    penalised = [i for i, r in enumerate(requests) if r.token_counts]
    if not (structured or early or biased or penalised):
        return logits_SV
    logits_SV = logits_SV.clone()
    if structured:
        matchers = [r.matcher for r in requests if r.matcher is not None]
        mask = forbidden(matchers, logits_SV.shape[1], logits_SV.device)
        logits_SV[structured] = logits_SV[structured].masked_fill(mask, -torch.inf)
    if early:
        ends = [sorted(eos_token_ids.union(requests[i].params.stop_token_ids)) for i in early]
        where = _places(early, ends, logits_SV.device)
        logits_SV[where] = -torch.inf
    if biased:
        biases = [requests[i].params.logit_bias for i in biased]
        where = _places(biased, [list(bias) for bias in biases], logits_SV.device)
        values = [value for bias in biases for value in bias.values()]
        logits_SV[where] += torch.tensor(values, dtype=logits_SV.dtype, device=logits_SV.device)
    if penalised:
        _penalise(logits_SV, penalised, requests)
    return logits_SV


def _penalise(logits_SV: Tensor, rows: Sequence[int], requests: Sequence[Request]) -> None:
    counts = [requests[i].token_counts or {} for i in rows]
    where = _places(rows, [list(count) for count in counts], logits_SV.device)

    def per_token(name: str) -> Tensor:
        values = [float(getattr(requests[i].params, name)) for i in rows]
        lengths = torch.tensor([len(count) for count in counts])
        column = torch.tensor(values, dtype=torch.float64).repeat_interleave(lengths)
        return column.to(logits_SV.device)

    flat = [number for count in counts for number in count.values()]
    count = torch.tensor(flat, dtype=torch.float64, device=logits_SV.device)
    value = logits_SV[where].double()
    factor = per_token("repetition_penalty")
    value = torch.where(value > 0, value / factor, value * factor)
    value -= count * per_token("frequency_penalty")
    value -= (count > 0) * per_token("presence_penalty")
    logits_SV[where] = value.to(logits_SV.dtype)


def _places(
    rows: Sequence[int], tokens: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the index of all (row, token) pairs, tokens[k] belonging to rows[k]."""
    row = [i for i, each in zip(rows, tokens, strict=True) for _ in each]
    token = [t for each in tokens for t in each]
    return torch.tensor(row, device=device), torch.tensor(token, device=device)


def log_probabilities(
    logits_SV: Tensor, requests: Sequence[Request], tokens: Sequence[int | None]
) -> list[TokenLogprobs | None]:
    """Return what each request wants to know of its sampled token, from the model's own logits.

    Args:
        logits_SV: before `adjust`.
        tokens: the sampled ones, None where the row's numbers are broken.
    """
    found: list[TokenLogprobs | None] = [None] * len(requests)
    rows = [
        i
        for i, (request, token) in enumerate(zip(requests, tokens, strict=True))
        if request.params.logprobs is not None and token is not None
    ]
    if not rows:
        return found
    log_p = logits_SV[rows].double().log_softmax(dim=-1)
    sampled = [token for token in (tokens[i] for i in rows) if token is not None]
    own = log_p.gather(1, torch.tensor(sampled, device=log_p.device)[:, None])[:, 0].tolist()
    counts = [requests[i].params.logprobs or 0 for i in rows]
    best = log_p.topk(min(max(counts), log_p.shape[1]), dim=-1)
    values, ids = best.values.tolist(), best.indices.tolist()
    for k, (i, count) in enumerate(zip(rows, counts, strict=True)):
        top = tuple(zip(ids[k][:count], values[k][:count], strict=True))
        found[i] = TokenLogprobs(sampled[k], own[k], top)
    return found
