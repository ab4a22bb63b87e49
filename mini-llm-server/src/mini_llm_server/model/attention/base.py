"""What the model and the engine ask of an attention backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Span:
    """One sequence's tokens in a step: positions [start, start + num_tokens).

    `block_table` holds the sequence's KV blocks in order and covers start + num_tokens tokens;
    the first `start` of them were written in earlier steps.
    """

    start: int
    num_tokens: int
    block_table: Sequence[int]

    @property
    def context_len(self) -> int:
        """Tokens that the span's last token attends to, itself included."""
        return self.start + self.num_tokens


class LayerAttention(Protocol):
    """One step's attention: called once a layer, in order."""

    def __call__(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        """Write k and v into the cache and return attention of q over it.

        Args:
            layer: which layer's cache.
            q_NHD: queries [N, num_heads, head_dim], already rotated, spans one after another.
            k_NKD: keys [N, num_kv_heads, head_dim], already rotated.
            v_NKD: values, like k.

        Returns:
            [N, num_heads * head_dim]
        """


class AttentionBackend(Protocol):
    """Owns the KV cache's memory."""

    def plan(self, spans: Sequence[Span]) -> LayerAttention:
        """Compute what all layers of a step share: where to write and which slots to read."""

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (from, to) each, in all layers; reads come before writes."""
