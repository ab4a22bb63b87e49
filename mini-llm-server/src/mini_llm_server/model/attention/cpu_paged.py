"""Paged attention on a CPU: decodes by a C++ kernel that reads the cache where it lies.

Torch's operators need a batch's keys and values side by side: they would copy the whole context of
every sequence in every layer of every step. Prefill chunks, which reuse what they gather for many
tokens, stay with torch. See csrc/paged_decode.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mini_llm_server.model.attention.base import Span
from mini_llm_server.model.attention.torch_paged import Attend, TorchPagedAttention, block_tables

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class CpuPagedAttention(TorchPagedAttention):
    """Torch's backend with another way to attend decodes: all in one call, of any lengths.

    Needs `mini_llm_server.extension`.
    """

    def _share_batch(self, first: Span, span: Span) -> bool:
        return first.num_tokens == span.num_tokens == 1

    def _attend(self, spans: Sequence[Span]) -> Attend:
        if spans[0].num_tokens > 1:
            return super()._attend(spans)
        table = block_tables(spans)
        length = torch.tensor([span.context_len for span in spans])
        size, scale = self.block_size, self.config.head_dim**-0.5

        def attend(q_NHD: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> Tensor:
            out: Tensor = torch.ops.mini_llm_server.paged_decode(
                q_NHD, k_SKD, v_SKD, table, length, size, scale
            )
            return out

        return attend
