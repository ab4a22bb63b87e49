"""Attention over the paged KV cache: one interface, one backend a file."""

from __future__ import annotations

import torch

from mini_llm_server.model.attention.base import AttentionBackend, LayerAttention, Span
from mini_llm_server.model.attention.cpu_paged import DTYPES, CpuPagedAttention
from mini_llm_server.model.attention.torch_paged import TorchPagedAttention
from mini_llm_server.model.config import ModelConfig

__all__ = [
    "AttentionBackend",
    "CpuPagedAttention",
    "LayerAttention",
    "Span",
    "TorchPagedAttention",
    "make_attention",
]


def make_attention(
    config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> AttentionBackend:
    """Return the fastest backend that runs here: C++ on a CPU with a compiler, else torch's."""
    backend = TorchPagedAttention
    if device.type == "cpu" and dtype in DTYPES:
        from mini_llm_server import extension  # compiles at its first import: not for a GPU

        if extension.is_available:
            backend = CpuPagedAttention
    return backend(config, num_blocks, block_size, dtype, device)
