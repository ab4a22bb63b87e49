"""Paged attention whose decodes are one kernel of ours, which reads the cache where it lies.

Torch's operators need a batch's keys and values side by side: they would copy the whole context of
every sequence in every layer of every step. Prefill chunks, which reuse what they gather for many
tokens, stay with torch: on a GPU, in 16 bits, all of a step's in one call of FlashAttention (Dao
2023), which takes sequences of unlike lengths end to end; else one by one.

See csrc/paged_decode.cpp and csrc/cuda/paged_decode.cu.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from mini_llm_server.model.attention.base import LayerAttention, Span
from mini_llm_server.model.attention.torch_paged import Attend, TorchPagedAttention, block_tables

# Tokens whose keys and values a call for several prompts copies side by side. Prompts that share
# blocks may together be longer than the cache is, and the copy has to find room beside it.
_MOST_GATHERED = 1 << 16


@dataclass(frozen=True)
class Decodes:
    """One token of each of B sequences, as tensors whose memory may be filled anew for each step.

    Attributes:
        slots: [B], where its key and value are written; on a GPU a negative one is skipped.
        lengths: [B] tokens that it attends to, itself included; 0 gives zeros.
        table: [B, W] numbers of the blocks that hold them; what lies behind them is not read.

    All are int64, dense and on the cache's device.
    """

    slots: Tensor
    lengths: Tensor
    table: Tensor


class KernelPagedAttention(TorchPagedAttention):
    """Torch's backend with other ways to attend: all decodes, of any lengths, in one call.

    On a GPU in 16 bits also all prefill chunks. Needs `kernels.have` and, on a GPU, `supports`.
    """

    @cached_property
    def _has_flash(self) -> bool:
        return (
            self.device.type == "cuda"
            and self.kv.dtype in (torch.float16, torch.bfloat16)
            and torch.cuda.get_device_capability(self.device) >= (8, 0)
            and torch.backends.cuda.is_flash_attention_available()
        )

    @staticmethod
    def supports(head_dim: int) -> bool:
        """Return whether the GPU's kernel takes heads of this size; the CPU's takes any."""
        return head_dim % 8 == 0 and head_dim <= 256

    def decode(self, decodes: Decodes) -> LayerAttention:
        """Return a step's attention that reads `decodes` anew whenever it is called."""
        attend_layer = self._decode(decodes.lengths, decodes.table)

        def attend(layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
            self._write(layer, decodes.slots, k_NKD, v_NKD)
            return attend_layer(q_NHD, *self.kv[layer])

        return attend

    def _write(self, layer: int, slots: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> None:
        if self.device.type == "cuda":
            torch.ops.mini_llm_server.write_kv(k_NKD, v_NKD, slots, *self.kv[layer])
        else:
            super()._write(layer, slots, k_NKD, v_NKD)

    def _joins(self, batch: Sequence[Span], span: Span) -> bool:
        if batch[0].num_tokens == 1 or span.num_tokens == 1:
            return batch[0].num_tokens == span.num_tokens
        gathered = sum(each.context_len for each in batch)
        return self._has_flash and gathered + span.context_len <= _MOST_GATHERED

    def _attend(self, spans: Sequence[Span]) -> Attend:
        if spans[0].num_tokens == 1:
            lengths = torch.tensor([span.context_len for span in spans], device=self.device)
            return self._decode(lengths, block_tables(spans).to(self.device))
        return self._prefill(spans) if self._has_flash else super()._attend(spans)

    def _prefill(self, spans: Sequence[Span]) -> Attend:
        """Plan the attention of chunks of unlike lengths: queries and contexts lie end to end."""
        queries = [span.num_tokens for span in spans]
        contexts = [span.context_len for span in spans]
        slots = torch.cat([self._slots(span) for span in spans]).to(self.device)
        query_ends, context_ends = (
            torch.tensor([0, *accumulate(each)], dtype=torch.int32, device=self.device)
            for each in (queries, contexts)
        )

        def attend(q_NHD: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> Tensor:
            # Not a public face of torch: the public one, torch.nn.attention.varlen, differs from
            # version to version. Causal: a chunk's last query sees all of its context, the one
            # before it all but the last token, and so on.
            out: Tensor = torch.ops.aten._flash_attention_forward(
                q_NHD,
                k_SKD.index_select(0, slots),
                v_SKD.index_select(0, slots),
                query_ends,
                context_ends,
                max(queries),
                max(contexts),
                dropout_p=0.0,
                is_causal=True,
                return_debug_mask=False,
            )[0]
            return out.flatten(1)

        return attend

    def _slots(self, span: Span) -> Tensor:
        """Return the slots [context_len] of a span's context, in order."""
        first = torch.tensor(span.block_table)[:, None] * self.block_size
        return (first + torch.arange(self.block_size)).flatten()[: span.context_len]

    def _decode(self, lengths: Tensor, table: Tensor) -> Attend:
        size, scale = self.block_size, self.config.head_dim**-0.5
        arrivals = None
        if self.device.type == "cuda":  # where the blocks of a sequence count themselves
            shape = (len(lengths), self.config.num_heads)
            arrivals = torch.zeros(shape, dtype=torch.int32, device=self.device)

        def attend(q_NHD: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> Tensor:
            out: Tensor = torch.ops.mini_llm_server.paged_decode(
                q_NHD, k_SKD, v_SKD, table, lengths, size, scale, arrivals
            )
            return out

        return attend
