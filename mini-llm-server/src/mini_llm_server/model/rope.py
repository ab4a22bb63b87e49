"""Rotary positions: the frequencies of RoPE (Su et al. 2021) and their scalings for long contexts.

A model trained on short texts sees longer ones by turning its positions more slowly. `linear`
slows every frequency alike (Chen et al. 2023); `llama3` only those that turn less than once or so
in the original context (Llama 3.1's way); `yarn` likewise, with a ramp between, and makes attention
a little sharper (Peng et al. 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

SCALINGS = ("linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies are changed.

    Args:
        kind: one of `SCALINGS`.
        factor: how many times longer the context becomes.
        original_max_position: tokens of context that the model was trained with.
        low_freq_factor, high_freq_factor: llama3's ramp, in turns within the original context.
        beta_fast, beta_slow: yarn's ramp, in the same unit.
        attention_factor: what yarn multiplies cos and sin with; None is its formula for `factor`.
        truncate: whether yarn rounds its ramp's ends to whole dimensions.

    Raises:
        ValueError: naming the number that makes no sense.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in SCALINGS:
            raise ValueError(f"rope scaling {self.kind!r} is not known: {', '.join(SCALINGS)} are")
        if not (self.factor >= 1 and math.isfinite(self.factor)):
            raise ValueError(f"the rope scaling's factor is {self.factor}: it must be at least 1")
        if self.kind != "linear" and self.original_max_position < 1:
            raise ValueError(
                f"rope scaling {self.kind} has original_max_position_embeddings "
                f"{self.original_max_position}: it must be at least 1"
            )
        if self.kind == "llama3" and not self.high_freq_factor > self.low_freq_factor > 0:
            raise ValueError(
                f"rope scaling llama3 has low_freq_factor {self.low_freq_factor} and "
                f"high_freq_factor {self.high_freq_factor}: the second must be the larger one"
            )
        if self.kind == "yarn" and not self.beta_fast > self.beta_slow > 0:
            raise ValueError(
                f"rope scaling yarn has beta_fast {self.beta_fast} and beta_slow "
                f"{self.beta_slow}: the first must be the larger one"
            )


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None
) -> tuple[Tensor, float]:
    """Return radians a position, float32 [head_dim / 2], and what cos and sin are multiplied with.

    Float32 even for a float64 model: the angles are part of what a model was trained with, and
    float32 ones are what its published logits come from.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequency = 1.0 / theta**exponent
    if scaling is None:
        return frequency, 1.0
    slow = frequency / scaling.factor
    if scaling.kind == "linear":
        return slow, 1.0
    if scaling.kind == "llama3":
        turns = scaling.original_max_position * frequency / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return slow + keep * (frequency - slow), 1.0
    begin, end = (
        _dimension_of(turns, head_dim, theta, scaling.original_max_position)
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        begin, end = math.floor(begin), math.ceil(end)
    begin, end = max(begin, 0), min(end, head_dim - 1)
    ramp = (torch.arange(head_dim // 2).float() - begin) / max(end - begin, 0.001)
    keep = 1 - ramp.clamp(0, 1)
    attention = scaling.attention_factor
    if attention is None:
        attention = 0.1 * math.log(scaling.factor) + 1.0
    return slow * (1 - keep) + frequency * keep, attention


def _dimension_of(turns: float, head_dim: int, theta: float, context: int) -> float:
    """Return which pair of dimensions turns this often within the context, as a real number."""
    return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))


def rotary_table(
    head_dim: int, theta: float, scaling: RopeScaling | None, num_positions: int
) -> tuple[Tensor, Tensor]:
    """Return cos and sin, float32 [num_positions, head_dim]; sin has the rotation's sign in it."""
    frequency, attention = rope_frequencies(head_dim, theta, scaling)
    angle = torch.arange(num_positions).float()[:, None] * frequency
    cos, sin = angle.cos() * attention, angle.sin() * attention
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
