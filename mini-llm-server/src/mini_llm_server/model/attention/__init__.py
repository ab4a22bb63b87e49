"""Attention over the paged KV cache: one interface, one backend a file."""

from mini_llm_server.model.attention.base import AttentionBackend, LayerAttention, Span
from mini_llm_server.model.attention.torch_paged import TorchPagedAttention

__all__ = ["AttentionBackend", "LayerAttention", "Span", "TorchPagedAttention"]
