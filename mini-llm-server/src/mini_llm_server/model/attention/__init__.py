"""Attention over the paged KV cache: one interface, one backend a file."""

from __future__ import annotations

import torch

from mini_llm_server import kernels
from mini_llm_server.model.attention.base import AttentionBackend, LayerAttention, Span
from mini_llm_server.model.attention.kernel_paged import Decodes, KernelPagedAttention
from mini_llm_server.model.attention.torch_paged import TorchPagedAttention
from mini_llm_server.model.config import ModelConfig

__all__ = [
    "AttentionBackend",
    "Decodes",
    "KernelPagedAttention",
    "LayerAttention",
    "Span",
    "TorchPagedAttention",
    "make_attention",
]


def make_attention(
    config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> AttentionBackend:
    """Return the fastest backend that runs here: with our kernels, else torch's."""
    backend = TorchPagedAttention
    supports = device.type != "cuda" or KernelPagedAttention.supports(config.head_dim)
    if supports and kernels.have(device, dtype):
        backend = KernelPagedAttention
    return backend(config, num_blocks, block_size, dtype, device)
