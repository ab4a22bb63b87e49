"""Paged attention in plain torch: gather a sequence's blocks, then scaled_dot_product_attention.

Runs wherever torch does. Decodes are gathered and attended as padded batches of similar length,
prefill chunks one by one. Query heads that share a KV head are folded into the query dimension
([G query heads, T tokens] -> T * G queries), so keys and values are never repeated in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mini_llm_server.model.attention.base import LayerAttention, Span
from mini_llm_server.model.config import ModelConfig

# Decodes share a padded batch while the longest context is at most twice the shortest, or short
# anyway: without the bound one long sequence makes every short one read its length.
_SHORT = 128

# Attention of some sequences' tokens in one layer: their queries [n, H, D], and the layer's keys
# and values [slots, K, D], in; [n, H * D] out.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


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

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (from, to) each, in all layers; reads come before writes."""
        source, target = torch.tensor(copies, device=self.device).unbind(1)
        blocks = self.kv.view(*self.kv.shape[:2], -1, self.block_size, *self.kv.shape[3:])
        blocks[:, :, target] = blocks[:, :, source]

    def plan(self, spans: Sequence[Span]) -> LayerAttention:
        """Return the step's attention.

        Spans of one token are attended as batches wherever they lie next to each other; put
        decodes first and in order of length to have few and tight batches.
        """
        parts: list[tuple[int, Attend]] = []  # (tokens, what attends them)
        for batch in self._batches(spans):
            parts.append((sum(span.num_tokens for span in batch), self._attend(batch)))
        counts = [count for count, _ in parts]
        written = torch.tensor(self.written(spans), device=self.device)

        def attend(layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
            self._write(layer, written, k_NKD, v_NKD)
            k_SKD, v_SKD = self.kv[layer]
            if len(parts) == 1:
                return parts[0][1](q_NHD, k_SKD, v_SKD)
            split = torch.split(q_NHD, counts)
            return torch.cat(
                [each(q, k_SKD, v_SKD) for (_, each), q in zip(parts, split, strict=True)]
            )

        return attend

    def _write(self, layer: int, slots: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> None:
        k_SKD, v_SKD = self.kv[layer]
        k_SKD.index_copy_(0, slots, k_NKD)
        v_SKD.index_copy_(0, slots, v_NKD)

    def _batches(self, spans: Sequence[Span]) -> list[Sequence[Span]]:
        """Cut the spans into runs that are attended together."""
        batches: list[Sequence[Span]] = []
        first = 0
        for i in range(1, len(spans) + 1):
            if i == len(spans) or not self._joins(spans[first:i], spans[i]):
                batches.append(spans[first:i])
                first = i
        return batches

    def _joins(self, batch: Sequence[Span], span: Span) -> bool:
        """Return whether the span is attended together with those before it."""
        if batch[0].num_tokens > 1 or span.num_tokens > 1:
            return False
        short, long = sorted((batch[0].context_len, span.context_len))
        return long <= max(_SHORT, 2 * short)

    def written(self, spans: Sequence[Span]) -> list[int]:
        """Return the slot [N] that each of the step's tokens is written to."""
        # Plain Python: each of torch's operators lets go of the interpreter's lock, and a busy
        # event loop gives it back late.
        size = self.block_size
        slots: list[int] = []
        for span in spans:
            position, end = span.start, span.context_len
            while position < end:
                block, offset = divmod(position, size)
                count = min(size - offset, end - position)
                first = span.block_table[block] * size + offset
                slots += range(first, first + count)
                position += count
        return slots

    def _attend(self, spans: Sequence[Span]) -> Attend:
        """Plan the attention of a batch: B sequences of T query tokens each."""
        B, T, D = len(spans), spans[0].num_tokens, self.config.head_dim
        K, G = self.config.num_kv_heads, self.config.num_groups
        slots, mask = self._gathered(spans)

        def attend(q_NHD: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> Tensor:
            q = q_NHD.view(B, T, K, G, D).transpose(1, 2).reshape(B, K, T * G, D)
            # index_select copies whole rows; k_SKD[slots] would take five times as long.
            k = k_SKD.index_select(0, slots).view(B, -1, K, D).transpose(1, 2)  # [B, K, L, D]
            v = v_SKD.index_select(0, slots).view(B, -1, K, D).transpose(1, 2)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return out.view(B, K, T, G, D).transpose(1, 2).reshape(B * T, K * G * D)

        return attend

    def _gathered(self, spans: Sequence[Span]) -> tuple[Tensor, Tensor | None]:
        """Return a batch's slots and mask.

        Returns:
            The slots [B * L] of each sequence's context, padded to L, and an additive mask
            [B or 1, 1, T * G, L], 0 where a query sees a slot and -inf elsewhere; None where all
            see all.
        """
        T = spans[0].num_tokens
        lengths = [span.context_len for span in spans]
        L = max(lengths)
        last_B1 = torch.tensor(lengths)[:, None] - 1
        position_L = torch.arange(L)
        # Past its end a sequence reads its own last slot again. The mask hides it, but a masked
        # value still enters as 0 * value: from a foreign slot, a NaN there would spread.
        position_BL = torch.minimum(position_L, last_B1)
        slots_BL = block_tables(spans).gather(1, position_BL // self.block_size) * self.block_size
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
        return slots_BL.flatten().to(self.device), mask


def block_tables(spans: Sequence[Span]) -> Tensor:
    """Return the spans' block tables [len(spans), X] int64, padded with block 0."""
    widest = max(len(span.block_table) for span in spans)
    return torch.tensor(
        [[*span.block_table, *[0] * (widest - len(span.block_table))] for span in spans]
    )
