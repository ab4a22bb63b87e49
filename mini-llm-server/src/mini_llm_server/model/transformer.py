"""A Llama-shaped decoder over a flat batch of tokens: the layers know nothing of sequences.

All tokens of a step, of whatever requests, stand in one [N, hidden] matrix, so that every weight
is read once for all of them; that is what makes batching pay. Only attention knows which token
belongs to whom, and it is handed in for each step.

Shapes: N tokens, E hidden size, H query heads, K KV heads, D head size, F feed-forward size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mini_llm_server.model.attention.base import LayerAttention
from mini_llm_server.model.config import ModelConfig
from mini_llm_server.model.elementwise import make_elementwise, rms_norm
from mini_llm_server.model.linear import Linear
from mini_llm_server.model.rope import rotary_table


@dataclass(frozen=True)
class Layer:
    """One block's weights; projections that read the same input are one matrix."""

    attention_norm: Tensor  # [E]
    qkv: Linear  # [(H + 2 K) * D, E]
    qk_norm: Tensor | None  # [H + K, D]
    output: Linear  # [E, H * D]
    mlp_norm: Tensor  # [E]
    gate_up: Linear  # [2 F, E]
    down: Linear  # [E, F]


class Llama:
    """The model's weights and its forward pass.

    Args:
        config: its shape.
        weights: tensors under Hugging Face's names ("model.layers.0.self_attn.q_proj.weight"),
            each asked for once, so that the mapping may read them from a file one by one.
        dtype: what they are converted to and computed in.
        device: where they go.

    Raises:
        ValueError: a tensor is missing or has another shape than the config says.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        E, F_, D = config.hidden_size, config.intermediate_size, config.head_dim

        def take(name: str, *shape: int) -> Tensor:
            if name not in weights:
                raise ValueError(f"the weights hold no {name}: they are not of this config's model")
            weight = weights[name]
            if weight.shape != shape:
                got = list(weight.shape)
                raise ValueError(f"{name} has shape {got}, the config says {list(shape)}")
            return weight.to(device, dtype)

        def layer(i: int) -> Layer:
            at = f"model.layers.{i}."
            H, K = config.num_heads * D, config.num_kv_heads * D
            rows = {"q": H, "k": K, "v": K}
            qkv = [take(f"{at}self_attn.{n}_proj.weight", size, E) for n, size in rows.items()]
            qkv_bias = output_bias = qk_norm = None
            if config.qkv_bias:
                biases = [take(f"{at}self_attn.{n}_proj.bias", size) for n, size in rows.items()]
                qkv_bias = torch.cat(biases)
            if config.output_bias:
                output_bias = take(at + "self_attn.o_proj.bias", E)
            if config.qk_norm:
                q_norm = take(at + "self_attn.q_norm.weight", D)
                k_norm = take(at + "self_attn.k_norm.weight", D)
                qk_norm = torch.cat(
                    [q_norm.expand(config.num_heads, D), k_norm.expand(config.num_kv_heads, D)]
                )
            gate = take(at + "mlp.gate_proj.weight", F_, E)
            up = take(at + "mlp.up_proj.weight", F_, E)
            return Layer(
                take(at + "input_layernorm.weight", E),
                Linear(torch.cat(qkv), qkv_bias),
                qk_norm,
                Linear(take(at + "self_attn.o_proj.weight", E, H), output_bias),
                take(at + "post_attention_layernorm.weight", E),
                Linear(torch.cat([gate, up])),
                Linear(take(at + "mlp.down_proj.weight", E, F_)),
            )

        self.embedding = take("model.embed_tokens.weight", config.vocab_size, E)
        self.layers = [layer(i) for i in range(config.num_layers)]
        self.norm_E = take("model.norm.weight", E)
        head = self.embedding
        if not config.tie_word_embeddings:
            head = take("lm_head.weight", config.vocab_size, E)
        self.head = Linear(head)
        self._elementwise = make_elementwise(dtype, device)
        self._cos_PD, self._sin_PD = (
            table.to(device, dtype)
            for table in rotary_table(
                D, config.rope_theta, config.rope_scaling, config.max_position
            )
        )

    def forward(
        self,
        token_ids_N: Tensor,
        positions_N: Tensor,
        rows_S: Tensor | None,
        attend: LayerAttention,
    ) -> Tensor:
        """Return the logits [S, vocab] of the tokens at `rows_S`.

        Args:
            token_ids_N: the step's tokens, int64.
            positions_N: each one's position in its own sequence, int64.
            rows_S: which of the N tokens' logits are wanted, None for all: the output projection
                is the largest matrix, and a prompt needs it for its last token only.
            attend: the step's attention, from a backend's plan.
        """
        config = self.config
        H, K, D = config.num_heads, config.num_kv_heads, config.head_dim
        cos_N1D = self._cos_PD[positions_N][:, None]
        sin_N1D = self._sin_PD[positions_N][:, None]
        eps, ops = config.rms_norm_eps, self._elementwise
        x = self.embedding[token_ids_N]
        delta: Tensor | None = None
        for i, layer in enumerate(self.layers):
            x, normed = ops.add_norm(x, delta, layer.attention_norm, eps)
            qkv = layer.qkv(normed).view(-1, H + 2 * K, D)
            qk = qkv[:, : H + K]
            if layer.qk_norm is not None:
                qk = rms_norm(qk, layer.qk_norm, eps)
            qk = ops.rotate(qk, cos_N1D, sin_N1D)
            mixed = attend(i, qk[:, :H], qk[:, H:], qkv[:, H + K :])
            x, normed = ops.add_norm(x, layer.output(mixed), layer.mlp_norm, eps)
            delta = layer.down(ops.silu_mul(layer.gate_up(normed)))
        if rows_S is not None:
            x, delta = x[rows_S], None if delta is None else delta[rows_S]
        _, normed = ops.add_norm(x, delta, self.norm_E, eps)
        return self.head(normed)
