"""Turns a Llama's GGUF file into a config, and weights under Hugging Face's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from mini_llm_server.model.config import ModelConfig
from mini_llm_server.model.gguf import GGUFFile
from mini_llm_server.model.json_fields import Fields

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def read_config(file: GGUFFile) -> ModelConfig:
    """Return the model's shape.

    Raises:
        ValueError: the file holds no Llama, or a number is missing or makes no sense.
    """
    meta = Fields(file.metadata, str(file.path))
    architecture = meta.get("general.architecture", str)
    if architecture != "llama":
        raise ValueError(f"{file.path} holds a model of kind {architecture!r}: only llama is read")
    meta.refuse_unless("llama.rope.scaling.type", "none")
    num_heads = meta.get("llama.attention.head_count", int)
    hidden_size = meta.get("llama.embedding_length", int)
    return ModelConfig(
        vocab_size=len(meta.get("tokenizer.ggml.tokens", list)),
        hidden_size=hidden_size,
        intermediate_size=meta.get("llama.feed_forward_length", int),
        num_layers=meta.get("llama.block_count", int),
        num_heads=num_heads,
        num_kv_heads=meta.get("llama.attention.head_count_kv", int, default=num_heads),
        head_dim=hidden_size // max(1, num_heads),
        max_position=meta.get("llama.context_length", int),
        rope_theta=meta.get("llama.rope.freq_base", float, default=10_000.0),
        rms_norm_eps=meta.get("llama.attention.layer_norm_rms_epsilon", float),
        tie_word_embeddings="output.weight" not in file.tensor_names(),
    )


class GGUFWeights(Mapping[str, Tensor]):
    """A file's weights as float32 under Hugging Face's names.

    Each is read when it is asked for, so that a model never lies in memory twice.

    Raises:
        ValueError: the file holds a tensor that a Llama does not have.
    """

    def __init__(self, file: GGUFFile, config: ModelConfig) -> None:
        self._file = file
        self._heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
        self._names = {_hugging_face_name(file, name): name for name in file.tensor_names()}

    def __getitem__(self, name: str) -> Tensor:
        stored = self._names[name]
        tensor = self._file.tensor(stored)
        kind = stored.split(".")[-2]
        return _unpermute(tensor, self._heads[kind]) if kind in self._heads else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _hugging_face_name(file: GGUFFile, name: str) -> str:
    """Return the name of "token_embd.weight" or "blk.LAYER.KIND.weight" as transformers has it."""
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    match name.split("."):
        case ["blk", layer, kind, "weight"] if kind in _LAYER_NAMES:
            return f"model.layers.{layer}.{_LAYER_NAMES[kind]}.weight"
    raise ValueError(f"{file.path} holds {name}, which a Llama does not have")


def _unpermute(weight: Tensor, heads: int) -> Tensor:
    """Reorder a head's rows from GGUF's pairs (2 d, 2 d + 1) to the pairs (d, d + D / 2).

    Rotary positions turn pairs of rows; ggml's kernel wants them next to each other.
    """
    if weight.ndim != 2 or weight.shape[0] % (2 * heads):
        raise ValueError(f"a projection of shape {list(weight.shape)} has no {heads} heads")
    rows, columns = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)
