"""Model folders as transformers writes them: logits against transformers, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_llm_server.model.attention import Span, TorchPagedAttention
from mini_llm_server.model.hf_config import config_from_json
from mini_llm_server.model.safetensors_weights import SafetensorsWeights
from mini_llm_server.model.transformer import Llama
from torch import Tensor

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "llama, every head its own KV head": ("llama", {"num_key_value_heads": 6}),
    "llama, one KV head": ("llama", {"num_key_value_heads": 1, "head_dim": 16}),
    "llama, biases": ("llama", {"attention_bias": True}),
    "llama3 scaling": ("llama", {"rope_parameters": LLAMA3}),
    "linear scaling": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "yarn scaling": ("llama", {"rope_parameters": YARN}),
    "yarn scaling, not truncated": (
        "llama",
        {"rope_parameters": {**YARN, "truncate": False, "beta_fast": 16, "attention_factor": 1.3}},
    ),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "qwen3, tied, its own head_dim": ("qwen3", {"tie_word_embeddings": True, "head_dim": 32}),
    "qwen3, yarn": ("qwen3", {"head_dim": 16, "rope_parameters": YARN}),
}


def save(folder: Path, family: str, changes: dict[str, Any], **options: Any) -> Any:
    """Let transformers make a random model and write it; return the model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **{**SMALL, **changes}), attn_implementation="eager"
    )
    with torch.no_grad():  # norms of 1 and biases of 0 would hide that they are not used
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "embed" in name or "lm_head" in name:
                parameter.mul_(3)
            else:
                parameter.mul_(8)
    model.save_pretrained(folder, **options)
    return model.eval()


def read(folder: Path) -> Llama:
    config = config_from_json(json.loads((folder / "config.json").read_text()), "config.json")
    return Llama(config, SafetensorsWeights(folder), torch.float32, CPU)


def logits(model: Llama, ids: Tensor, sizes: list[int]) -> Tensor:
    """All logits of a sequence that is fed in chunks of these sizes."""
    attention = TorchPagedAttention(model.config, 60, 4, model.dtype, CPU)
    rows, start = [], 0
    for size in sizes:
        attend = attention.plan([Span(start, size, list(range(59, 0, -1)))])
        positions = torch.arange(start, start + size)
        rows.append(model.forward(ids[positions], positions, torch.arange(size), attend))
        start += size
    return torch.cat(rows)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_transformers(tmp_path: Path, name: str) -> None:
    family, changes = MODELS[name]
    theirs = save(tmp_path, family, changes)
    ids = torch.randint(0, 300, (150,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(ids[None]).logits[0]
        got = logits(read(tmp_path), ids, [100, 1, 1, 48])
    assert expected.std() > 0.2
    assert (got - expected).norm() / expected.norm() < 2e-6, name


@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("llama3 scaling", {"rope_scaling": None}),
        ("linear scaling", {"rope_scaling": None}),
        ("yarn scaling", {"rope_scaling": None}),
        ("llama, biases", {"output_bias": False}),
        ("qwen2", {"qkv_bias": False}),
        ("qwen3", {"qk_norm": False}),
    ],
)
def test_each_feature_changes_the_logits(tmp_path: Path, name: str, off: dict[str, Any]) -> None:
    """Else the test above could not fail."""
    save(tmp_path, *MODELS[name])
    model = read(tmp_path)
    without = Llama(replace(model.config, **off), SafetensorsWeights(tmp_path), torch.float32, CPU)
    ids = torch.randint(0, 300, (150,), generator=torch.Generator().manual_seed(1))
    right, wrong = logits(model, ids, [150]), logits(without, ids, [150])
    assert (wrong - right).norm() / right.norm() > 1e-2
