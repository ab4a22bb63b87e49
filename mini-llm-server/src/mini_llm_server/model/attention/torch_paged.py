"""Paged attention in plain torch: gather a sequence's blocks, then scaled_dot_product_attention.

Runs wherever torch does. Decodes are gathered and attended as padded batches of similar length,
prefill chunks one by one. Query heads that share a KV head are folded into the query dimension
([G query heads, T tokens] -> T * G queries), so keys and values are never repeated in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mini_llm_server.model.attention.base import LayerAttention, Span
from mini_llm_server.model.config import ModelConfig

# Decodes share a padded batch while the longest context is at most twice the shortest, or short
# anyway: without the bound one long sequence makes every short one read its length.
_SHORT = 128


@dataclass(frozen=True)
class _Group:
    """B sequences of T query tokens each, at rows [first, first + B * T) of the flat batch."""

    first: int
    B: int
    T: int
    slots: Tensor  # [B, L] cache slots of each sequence's context, padded
    mask: Tensor | None  # [B or 1, 1, T * G, L], 0 where a query sees a slot, else -inf


class TorchPagedAttention:
    """The KV cache as one tensor [layers, 2, slots, kv_heads, head_dim], and attention over it."""

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config = config
        self.block_size = block_size
        self.device = device
        # Not zeroed: a slot is read only after it was written, and pages that no block ever uses
        # then cost no memory.
        self.kv = torch.empty(
            (config.num_layers, 2, num_blocks * block_size, config.num_kv_heads, config.head_dim),
            dtype=dtype,
            device=device,
        )

    def plan(self, spans: Sequence[Span]) -> LayerAttention:
        """Return the step's attention.

        Spans of one token are attended as batches wherever they lie next to each other; put
        decodes first and in order of length to have few and tight batches.
        """
        groups: list[_Group] = []
        row = 0
        for batch in _batches(spans):
            groups.append(self._group(row, batch))
            row += groups[-1].B * groups[-1].T
        # Padding repeats a sequence's last slot, so the last T columns are what the step writes.
        written = torch.cat([group.slots[:, -group.T :].reshape(-1) for group in groups])

        def attend(layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
            k_SKD, v_SKD = self.kv[layer]
            k_SKD.index_copy_(0, written, k_NKD)
            v_SKD.index_copy_(0, written, v_NKD)
            if len(groups) == 1:
                return self._attend(groups[0], q_NHD, k_SKD, v_SKD)
            return torch.cat([self._attend(group, q_NHD, k_SKD, v_SKD) for group in groups])

        return attend

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (from, to) each, in all layers; reads come before writes."""
        source, target = torch.tensor(copies, device=self.device).unbind(1)
        blocks = self.kv.view(*self.kv.shape[:2], -1, self.block_size, *self.kv.shape[3:])
        blocks[:, :, target] = blocks[:, :, source]

    def _group(self, first: int, spans: Sequence[Span]) -> _Group:
        B, T = len(spans), spans[0].num_tokens
        lengths = [span.context_len for span in spans]
        L = max(lengths)
        num_blocks = -(-L // self.block_size)
        tables = [[*span.block_table[:num_blocks]] for span in spans]
        tables_BX = torch.tensor([t + [0] * (num_blocks - len(t)) for t in tables])
        last_B1 = torch.tensor(lengths)[:, None] - 1
        position_L = torch.arange(L)
        # Past its end a sequence reads its own last slot again. The mask hides it, but a masked
        # value still enters as 0 * value: from a foreign slot, a NaN there would spread.
        position_BL = torch.minimum(position_L, last_B1)
        slots_BL = tables_BX.gather(1, position_BL // self.block_size) * self.block_size
        slots_BL += position_BL % self.block_size

        mask = None
        if T > 1:
            sees_TL = position_L <= (spans[0].start + torch.arange(T))[:, None]
            mask = sees_TL.repeat_interleave(self.config.num_groups, 0)[None, None]
        elif min(lengths) < L:
            mask = (position_L <= last_B1)[:, None, None]
        if mask is not None:  # additive: a boolean one would be converted again in every layer
            mask = torch.zeros(mask.shape, dtype=self.kv.dtype).masked_fill(~mask, -torch.inf)
            mask = mask.to(self.device)
        return _Group(first, B, T, slots_BL.to(self.device), mask)

    def _attend(self, group: _Group, q_NHD: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> Tensor:
        B, T, D = group.B, group.T, self.config.head_dim
        K, G = self.config.num_kv_heads, self.config.num_groups
        q = q_NHD[group.first : group.first + B * T].view(B, T, K, G, D)
        q = q.transpose(1, 2).reshape(B, K, T * G, D)
        # index_select copies whole rows; k_SKD[slots] would take five times as long.
        slots = group.slots.flatten()
        k = k_SKD.index_select(0, slots).view(B, -1, K, D).transpose(1, 2)  # [B, K, L, D]
        v = v_SKD.index_select(0, slots).view(B, -1, K, D).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask)
        return out.view(B, K, T, G, D).transpose(1, 2).reshape(B * T, K * G * D)


def _batches(spans: Sequence[Span]) -> list[Sequence[Span]]:
    """Cut the spans into runs that are attended together."""
    batches: list[Sequence[Span]] = []
    first = 0
    for i in range(1, len(spans) + 1):
        if i == len(spans) or not _fits(spans[first], spans[i]):
            batches.append(spans[first:i])
            first = i
    return batches


def _fits(first: Span, span: Span) -> bool:
    if first.num_tokens > 1 or span.num_tokens > 1:
        return False
    short, long = sorted((first.context_len, span.context_len))
    return long <= max(_SHORT, 2 * short)
