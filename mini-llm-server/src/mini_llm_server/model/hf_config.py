"""Reads a model's config.json, as transformers writes it: Llama, Qwen2 and Qwen3."""

from __future__ import annotations

from typing import Any

from mini_llm_server.model.config import ModelConfig
from mini_llm_server.model.json_fields import Fields
from mini_llm_server.model.rope import SCALINGS, RopeScaling

FAMILIES = ("llama", "qwen2", "qwen3")
_ROPE_FIELDS = frozenset(
    {
        "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings",
        "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor",
        "truncate", "partial_rotary_factor",
    }
)  # fmt: skip


def config_from_json(values: dict[str, Any], where: str) -> ModelConfig:
    """Return the shape that a config.json describes.

    Args:
        values: the file's object.
        where: the file's name, for errors.

    Raises:
        ValueError: the model is of another family, a number is missing or makes no sense, or it
            needs something that is not supported; the message names it.
    """
    fields = Fields(values, where)
    family = fields.get("model_type", str)
    if family not in FAMILIES:
        raise ValueError(f"{where} is of model_type {family!r}: read are {', '.join(FAMILIES)}")
    fields.refuse_unless("hidden_act", "silu")
    fields.refuse_unless("mlp_bias", False)
    fields.refuse_unless("quantization_config")
    fields.refuse_unless("use_sliding_window", False)
    if any(kind != "full_attention" for kind in values.get("layer_types") or ()):
        raise ValueError(f"{where}: layer_types holds more than full_attention: not supported here")
    hidden_size = fields.get("hidden_size", int)
    num_heads = fields.get("num_attention_heads", int)
    # What a config.json leaves out has the default of its family in transformers.
    default_head_dim = 128 if family == "qwen3" else hidden_size // max(1, num_heads)
    max_position = fields.get("max_position_embeddings", int)
    theta, scaling = _rope(fields, max_position)
    bias = fields.get("attention_bias", bool, default=False)
    return ModelConfig(
        vocab_size=fields.get("vocab_size", int),
        hidden_size=hidden_size,
        intermediate_size=fields.get("intermediate_size", int),
        num_layers=fields.get("num_hidden_layers", int),
        num_heads=num_heads,
        num_kv_heads=fields.get("num_key_value_heads", int, default=num_heads),
        head_dim=fields.get("head_dim", int, default=default_head_dim),
        max_position=max_position,
        rope_theta=theta,
        rms_norm_eps=fields.get("rms_norm_eps", float, default=1e-6),
        tie_word_embeddings=fields.get("tie_word_embeddings", bool, default=False),
        qkv_bias=True if family == "qwen2" else bias,
        output_bias=False if family == "qwen2" else bias,
        qk_norm=family == "qwen3",
        rope_scaling=scaling,
    )


def _rope(fields: Fields, max_position: int) -> tuple[float, RopeScaling | None]:
    """Return theta and scaling, from `rope_parameters` or from the older `rope_scaling`."""
    values = fields.values
    found = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise ValueError(f"{fields.where}: the rope parameters have to be an object")
    rope = Fields(found, f"{fields.where}: the rope parameters")
    theta = rope.get("rope_theta", float, default=fields.get("rope_theta", float, default=1e4))
    kind = rope.get("rope_type", str, default=rope.get("type", str, default="default"))
    for each in (rope, fields):
        each.refuse_unless("partial_rotary_factor", 1, 1.0)
    if unknown := sorted(found.keys() - _ROPE_FIELDS):
        raise ValueError(f"{rope.where} hold {', '.join(unknown)}, which is not supported here")
    if kind == "default":
        return theta, None
    if kind not in SCALINGS:
        raise ValueError(
            f"{rope.where} are of type {kind!r}: supported are default, {', '.join(SCALINGS)}"
        )
    attention_factor = None
    if found.get("attention_factor") is not None:
        attention_factor = rope.get("attention_factor", float)
    return theta, RopeScaling(
        kind=kind,  # type: ignore[arg-type]  # it is one of SCALINGS
        factor=rope.get("factor", float),
        original_max_position=rope.get(
            "original_max_position_embeddings", int, default=max_position
        ),
        low_freq_factor=rope.get("low_freq_factor", float, default=1.0),
        high_freq_factor=rope.get("high_freq_factor", float, default=4.0),
        beta_fast=rope.get("beta_fast", float, default=32.0),
        beta_slow=rope.get("beta_slow", float, default=1.0),
        attention_factor=attention_factor,
        truncate=rope.get("truncate", bool, default=True),
    )
