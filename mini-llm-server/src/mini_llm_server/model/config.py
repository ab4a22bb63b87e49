"""The numbers that describe a Llama-shaped model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mini_llm_server.model.rope import RopeScaling

MOST_POSITIONS = 2**22  # the table of angles has a row for each


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder with RMSNorm, rotary positions, grouped-query attention and SwiGLU.

    Llama has none of the biases, Qwen2 has them on q, k and v, and Qwen3 instead norms each head's
    query and key before the rotation (`qk_norm`).

    Raises:
        ValueError: the numbers contradict each other.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads",
            "head_dim", "max_position",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads is {self.num_heads} and num_kv_heads {self.num_kv_heads}: "
                "each KV head must serve the same number of query heads"
            )
        if self.max_position > MOST_POSITIONS:
            raise ValueError(
                f"max_position is {self.max_position}: at most {MOST_POSITIONS} are supported"
            )
        for name in ("rope_theta", "rms_norm_eps"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}: it must be finite and above 0")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}: rotary positions need it even")

    @property
    def num_groups(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    def kv_bytes_per_token(self, bytes_per_element: int) -> int:
        """Return the bytes that one token's keys and values take over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_element
