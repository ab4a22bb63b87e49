"""A tiny float64 model, and transformers' own Llama with the same weights to check it against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from mini_llm_server.engine.engine import Engine, EngineConfig
from mini_llm_server.engine.request import Output
from mini_llm_server.model.config import ModelConfig
from mini_llm_server.model.dummy import DUMMY_CONFIG, random_weights
from mini_llm_server.model.loader import LoadedModel, load_model

torch.set_num_threads(1)  # the models are tiny: a second thread costs more than it brings


@pytest.fixture(scope="session")
def tiny() -> LoadedModel:
    """The dummy model in float64, where a greedy choice does not hang on rounding."""
    return load_model("dummy", torch.float64, "cpu")


@pytest.fixture(scope="session")
def transformers_llama() -> Callable[[ModelConfig, dict[str, torch.Tensor]], Any]:
    """Build transformers' LlamaForCausalLM in float64 from a config and weights of ours."""
    return _transformers_llama


def _transformers_llama(config: ModelConfig, weights: dict[str, torch.Tensor]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_word_embeddings,
            attention_bias=False,
            mlp_bias=False,
        )
    ).double()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # there is none if it is tied
    # Its norms compute in float32 whatever the model's dtype; torch's own keep float64.
    norms = [(n, m) for n, m in model.named_modules() if type(m).__name__ == "LlamaRMSNorm"]
    for name, module in norms:
        norm = torch.nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=torch.float64)
        norm.weight = module.weight
        model.set_submodule(name, norm)
    return model.eval()


@pytest.fixture(scope="session")
def reference_greedy() -> Callable[[Sequence[int], int], list[int]]:
    """Greedy decoding by transformers, without any cache: the whole sequence for each token."""
    model = _transformers_llama(DUMMY_CONFIG, random_weights(DUMMY_CONFIG))
    known: dict[tuple[int, ...], int] = {}

    def generate(prompt: Sequence[int], max_tokens: int) -> list[int]:
        ids = list(prompt)
        for _ in range(max_tokens):
            key = tuple(ids)
            if key not in known:
                with torch.inference_mode():
                    known[key] = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(known[key])
        return ids[len(prompt) :]

    return generate


@pytest.fixture
def make_engine(tiny: LoadedModel) -> Callable[..., Engine]:
    def make(**options: Any) -> Engine:
        return Engine(tiny, EngineConfig(**{"num_blocks": 64, "block_size": 4, **options}))

    return make


@pytest.fixture(scope="session")
def run_all() -> Callable[..., dict[str, list[Output]]]:
    """Step an engine until it is idle; return each request's outputs. No block may be left."""

    def run(engine: Engine, max_steps: int = 5000) -> dict[str, list[Output]]:
        outputs: dict[str, list[Output]] = {}
        for _ in range(max_steps):
            if not engine.has_work():
                break
            for output in engine.step():
                outputs.setdefault(output.request_id, []).append(output)
        assert not engine.has_work(), f"not idle after {max_steps} steps"
        stats = engine.stats()
        assert stats.blocks_used == 0
        assert stats.blocks_free + stats.blocks_cached == stats.blocks_total
        return outputs

    return run
