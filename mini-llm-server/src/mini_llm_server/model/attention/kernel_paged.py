"""Paged attention whose decodes are one kernel of ours, which reads the cache where it lies.

Torch's operators need a batch's keys and values side by side: they would copy the whole context of
every sequence in every layer of every step. Prefill chunks, which reuse what they gather for many
tokens, stay with torch. See csrc/paged_decode.cpp and csrc/cuda/paged_decode.cu.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mini_llm_server.model.attention.base import LayerAttention, Span
from mini_llm_server.model.attention.torch_paged import Attend, TorchPagedAttention, block_tables


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
    """Torch's backend with another way to attend decodes: all in one call, of any lengths.

    Needs `kernels.have` and, on a GPU, `supports`.
    """

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

    def _share_batch(self, first: Span, span: Span) -> bool:
        return first.num_tokens == span.num_tokens == 1

    def _attend(self, spans: Sequence[Span]) -> Attend:
        if spans[0].num_tokens > 1:
            return super()._attend(spans)
        lengths = torch.tensor([span.context_len for span in spans], device=self.device)
        return self._decode(lengths, block_tables(spans).to(self.device))

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
