"""The dummy model: a random tiny Llama with a byte tokenizer. Instant, always there, babbles."""

from __future__ import annotations

import torch
from torch import Tensor

from mini_llm_server.model.config import ModelConfig
from mini_llm_server.model.tokenizer import ByteTokenizer

DUMMY_CONFIG = ModelConfig(
    vocab_size=ByteTokenizer.vocab_size,
    hidden_size=96,
    intermediate_size=160,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    max_position=2048,
)


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Return float32 weights under Hugging Face's names, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.empty(rows, columns).normal_(0, columns**-0.5, generator=generator)

    def norm(size: int = config.hidden_size) -> Tensor:
        return 1 + 0.1 * torch.randn(size, generator=generator)

    def bias(size: int) -> Tensor:
        return 0.5 * torch.randn(size, generator=generator)

    E, F = config.hidden_size, config.intermediate_size
    H, K = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    # Small embeddings, so that what the layers add outweighs them: with large ones the tied head
    # finds the input token again, and a test would not see whether attention is right.
    weights = {
        "model.embed_tokens.weight": matrix(config.vocab_size, E),
        "model.norm.weight": norm(),
    }
    for i in range(config.num_layers):
        at = f"model.layers.{i}."
        weights |= {
            at + "input_layernorm.weight": norm(),
            at + "self_attn.q_proj.weight": matrix(H, E),
            at + "self_attn.k_proj.weight": matrix(K, E),
            at + "self_attn.v_proj.weight": matrix(K, E),
            at + "self_attn.o_proj.weight": matrix(E, H),
            at + "post_attention_layernorm.weight": norm(),
            at + "mlp.gate_proj.weight": matrix(F, E),
            at + "mlp.up_proj.weight": matrix(F, E),
            at + "mlp.down_proj.weight": matrix(E, F),
        }
        if config.qkv_bias:
            for name, size in (("q", H), ("k", K), ("v", K)):
                weights[f"{at}self_attn.{name}_proj.bias"] = bias(size)
        if config.output_bias:
            weights[at + "self_attn.o_proj.bias"] = bias(E)
        if config.qk_norm:
            weights[at + "self_attn.q_norm.weight"] = norm(config.head_dim)
            weights[at + "self_attn.k_norm.weight"] = norm(config.head_dim)
    if not config.tie_word_embeddings:
        weights["lm_head.weight"] = matrix(config.vocab_size, E)
    return weights
