"""The sampler against a plain Python one that walks the sorted probabilities."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mini_llm_server.engine.request import Request, SamplingParams
from mini_llm_server.engine.sampler import sample


def request(**params: object) -> Request:
    return Request.create("r", [0], SamplingParams(**params))  # type: ignore[arg-type]


def plain_sample(logits: list[float], params: SamplingParams, uniform: float) -> tuple[int, float]:
    """Return the token, and how far the uniform number is from a border between two tokens."""
    top = max(logits)
    weights = [math.exp((x - top) / params.temperature) for x in logits]
    order = [i for i, weight in enumerate(weights) if weight >= params.min_p]
    if params.top_k or params.top_p < 1:
        order.sort(key=lambda i: -weights[i])
        if params.top_k:
            order = order[: params.top_k]
        total, mass, kept = sum(weights[i] for i in order), 0.0, []
        for i in order:
            if mass >= params.top_p * total:
                break
            mass += weights[i]
            kept.append(i)
        order = kept
    total = sum(weights[i] for i in order)
    mass, borders = 0.0, []
    for i in order:
        mass += weights[i]
        borders.append(mass / total)
    token = next(i for i, border in zip(order, borders, strict=True) if uniform < border)
    return token, min(abs(uniform - border) for border in borders[:-1]) if len(order) > 1 else 1.0


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocabulary=st.sampled_from([2, 5, 300, 700]),
    spread=st.sampled_from([0.0, 0.3, 4.0]),
    rows=st.lists(
        st.tuples(
            st.sampled_from([0.3, 1.0, 3.0]),
            st.sampled_from([0, 1, 3, 290]),
            st.sampled_from([0.05, 0.5, 0.93, 1.0]),
            st.sampled_from([0.0, 0.0, 0.02, 0.6, 1.0]),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_every_row_of_a_mixed_batch_is_drawn_like_the_plain_sampler(
    seed: int, vocabulary: int, spread: float, rows: list[tuple[float, int, float, float]]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Distinct logits: the order among equals is nobody's promise.
    noise = torch.randn(len(rows), vocabulary, generator=generator, dtype=torch.float64)
    logits = spread * noise + 1e-3 * torch.randperm(vocabulary, generator=generator)
    params = [
        SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m, seed=seed + i)
        for i, (t, k, p, m) in enumerate(rows)
    ]
    tokens = sample(logits, [Request.create("r", [0], p) for p in params])
    for i, (token, p) in enumerate(zip(tokens, params, strict=True)):
        uniform = random.Random(seed + i).getrandbits(32) / 2**32
        expected, margin = plain_sample(logits[i].tolist(), p, uniform)
        if margin > 1e-9:
            assert token == expected


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.2, 0.05])
    r = request(seed=1)
    count = 4000
    draws = [sample(probabilities.log()[None], [r])[0] for _ in range(count)]
    for token, p in enumerate(probabilities.tolist()):
        deviation = (count * p * (1 - p)) ** 0.5
        assert abs(draws.count(token) - count * p) < 4 * deviation


def test_a_seed_draws_the_same_whatever_shares_the_batch() -> None:
    logits = torch.randn(40, 1, 500, generator=torch.Generator().manual_seed(0))
    alone, crowded = request(seed=11), request(seed=11)
    others = [request(seed=i, top_p=0.8) for i in range(3)]
    expected = [sample(row, [alone])[0] for row in logits]
    seen = [sample(row.expand(4, -1), [*others[:2], crowded, others[2]])[2] for row in logits]
    assert seen == expected
    assert len(set(expected)) > 5


def test_greedy_takes_the_maximum_and_draws_nothing() -> None:
    r = request(temperature=0, seed=3)
    state = r.rng.getstate()
    assert sample(torch.tensor([[1.0, 9.0, 3.0]]), [r]) == [1]
    assert r.rng.getstate() == state


@pytest.mark.parametrize("temperature", [1e-8, 1e-300])
def test_a_tiny_temperature_is_greedy_and_not_nan(temperature: float) -> None:
    logits = torch.tensor([[1.0, 2.0, 1.999, -1e30]])
    assert sample(logits, [request(temperature=temperature)]) == [1]


def test_huge_logits_and_masked_tokens() -> None:
    logits = torch.tensor([[3e38, -3e38, -torch.inf], [-torch.inf, -torch.inf, 0.0]])
    assert sample(logits, [request(seed=1), request(seed=2, top_p=0.9)]) == [0, 2]


@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_p": 0.9}, {"top_k": 2}])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_row_is_told_apart_from_its_neighbours(
    params: dict[str, float], bad: float
) -> None:
    logits = torch.zeros(3, 10)
    logits[:, 4] = 50
    logits[1, 7] = bad
    assert sample(logits, [request(**params) for _ in range(3)]) == [4, None, 4]
    assert sample(torch.full((1, 4), -torch.inf), [request(**params)]) == [None]


@pytest.mark.parametrize("V", [2000, 9000])  # more than the sampler's first look, and its second
def test_top_p_of_a_flat_distribution_keeps_its_share_of_a_large_vocabulary(V: int) -> None:
    r = request(top_p=0.5, seed=0)
    draws = {sample(torch.linspace(0, 0.1, V)[None], [r])[0] for _ in range(400)}
    assert min(t for t in draws if t is not None) > 0.45 * V  # the more likely half
    assert len(draws) > 250


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0), ("temperature", -1), ("temperature", math.nan),
        ("temperature", math.inf), ("top_p", 0), ("top_p", 1.5), ("top_p", math.nan),
        ("top_k", -1), ("stop", "abc"), ("stop", ("",)),
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})  # type: ignore[arg-type]
