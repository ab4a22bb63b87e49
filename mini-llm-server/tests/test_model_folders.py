"""Model folders as transformers writes them: logits against transformers, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_llm_server import LLM, SamplingParams
from mini_llm_server.model.attention import Span, TorchPagedAttention
from mini_llm_server.model.hf_config import config_from_json
from mini_llm_server.model.hf_tokenizer import folder_tokenizer
from mini_llm_server.model.hub import FILES
from mini_llm_server.model.loader import load_model
from mini_llm_server.model.safetensors_weights import SafetensorsWeights
from mini_llm_server.model.transformer import Llama
from torch import Tensor

CPU = torch.device("cpu")
PACKAGE = Path(__file__).parents[1]
TEXTS = [
    "Hello world", " two  spaces and\nlines\t", "grüße 🙂 \u0300", "", "12 345",
    "<think>hm</think>", "it's<|im_end|>\n<|im_start|>user",
]  # fmt: skip
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


TEMPLATE = """{{ bos_token }}{% for message in messages -%}
    {% if loop.index > 9 %}{% break %}{% endif -%}
    <|im_start|>{{ message.role }}
{{ message['content'] | trim }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TALK = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Grüße 🙂"}]


def byte_level() -> Any:
    """Trained as Llama 3's and Qwen's are: bytes, merges, a BOS in front of plain text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from tokenizers.decoders import ByteLevel

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    special = ["<|bos|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        [(PACKAGE / "LICENSE").read_text()],
        trainers.BpeTrainer(
            vocab_size=295,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens(["<think>", "</think>"])  # text, and one token each
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 0)]
    )
    return tokenizer


def sentencepiece() -> Any:
    """Spelled as Llama 2's: U+2581 for a space, <0x0A> for bytes without a token."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = ["<unk>", "<|bos|>", "<|im_end|>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += [*"\u2581helowrdinas", "he", "ll", "\u2581w"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [("h", "e"), ("l", "l"), ("\u2581", "w")]
    model = models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    replace_space = decoders.Replace("\u2581", " ")
    tokenizer.decoder = decoders.Sequence([replace_space, decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<|bos|>", "<|im_end|>"])
    return tokenizer


def save_tokenizer(folder: Path, tokenizer: Any) -> Any:
    """Let transformers write the tokenizer's files; return its own reading of them."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    whole.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_a_tokenizer_reads_and_writes_as_transformers_does(tmp_path: Path, make: Any) -> None:
    theirs = save_tokenizer(tmp_path, make())
    ours = folder_tokenizer(tmp_path)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    chat = ours.apply_chat_template(TALK)
    assert chat == theirs.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False)
    (end,) = ours.eos_token_ids
    assert (end, ours.token_bytes(end)) == (theirs.eos_token_id, b"")
    assert ours.token_text(end) == "<|im_end|>"
    assert ours.token_bytes(10**9) == b""  # an embedding row that the tokenizer does not use


def test_bytes_of_a_character_that_is_spread_over_tokens(tmp_path: Path) -> None:
    for make in (byte_level, sentencepiece):
        folder = tmp_path / make.__name__
        save_tokenizer(folder, make())
        tokenizer = folder_tokenizer(folder)
        pieces = [tokenizer.token_bytes(i) for i in tokenizer.encode("🙂")]
        assert b"".join(pieces) == "🙂".encode()
        assert len([piece for piece in pieces if piece]) > 1


def test_a_folder_is_served_under_its_name_and_generates_what_transformers_does(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "Tiny-Qwen3"
    theirs = save(folder, "qwen3", {"head_dim": 16, "eos_token_id": 299})
    tokenizer = save_tokenizer(folder, byte_level())
    theirs.generation_config.eos_token_id = None  # goes on, as ours does with ignore_eos
    llm = LLM(str(folder), num_blocks=64)
    assert llm.engine.loaded.name == "Tiny-Qwen3"
    prompts = ["Licensed under the", "work", "To the extent that"]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    for prompt, answer in zip(prompts, llm.generate(prompts, params), strict=True):
        ids = torch.tensor([tokenizer.encode(prompt)])
        expected = theirs.generate(ids, do_sample=False, max_new_tokens=12)
        assert list(answer.token_ids) == expected[0, ids.shape[1] :].tolist()


def test_shards_are_read_from_their_index(tmp_path: Path) -> None:
    theirs = save(tmp_path, "llama", {}, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ids = torch.arange(20)
    with torch.inference_mode():
        torch.testing.assert_close(
            logits(read(tmp_path), ids, [20]), theirs(ids[None]).logits[0], rtol=1e-4, atol=1e-5
        )
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match="a part of its weights"):
        read(tmp_path)


def test_a_model_without_a_chat_template_says_so(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, byte_level())
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer = folder_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no chat template: use /v1/completions"):
        tokenizer.apply_chat_template(TALK)


def test_a_model_of_the_hub_that_was_fetched_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own cache is laid out by hand, and nothing is fetched."""
    import huggingface_hub
    from huggingface_hub import constants

    repository = tmp_path / "models--some--tiny-llama"
    snapshot = repository / "snapshots" / ("0" * 40)
    save(snapshot, "llama", {})
    save_tokenizer(snapshot, byte_level())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    fetch = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **options: fetch(name, cache_dir=tmp_path, local_files_only=True, **options),
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_model("some/tiny-llama", device="cpu").name == "some/tiny-llama"
    with pytest.raises(FileNotFoundError, match=r"some/other .*Hugging Face hub"):
        load_model("some/other")
    assert not any(name.endswith((".bin", ".py", ".pt")) for name in FILES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba': read are llama, qwen2, qwen3"),
        ({"model_type": None}, "no model_type"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope", "long_factor": [1.0]}}, "long_factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.0}}, "factor is 0.0"),
        ({"rope_parameters": {"rope_type": "linear"}}, "no factor"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta is -1.0"),
        ({"rope_parameters": 5}, "have to be an object"),
        ({"hidden_size": None}, "no hidden_size"),
        ({"hidden_size": "48"}, "hidden_size is '48', and it has to be int"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_attention_heads": 0}, "num_heads is 0"),
        ({"num_attention_heads": 5}, "num_kv_heads"),
        ({"num_hidden_layers": -3}, "num_layers is -3"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"max_position_embeddings": 10**12}, "max_position is 1000000000000"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_a_config_asks_for_in_vain_is_named(changes: dict[str, Any], message: str) -> None:
    values = {"model_type": "llama", "hidden_act": "silu", **SMALL, **changes}
    with pytest.raises(ValueError, match=re.escape(message)):
        config_from_json(values, "config.json")


def test_older_spellings_of_the_rope_settings() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}
    new = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    base = {"model_type": "llama", **SMALL}
    assert config_from_json({**base, **old}, "a") == config_from_json({**base, **new}, "b")


def test_pickles_are_named_and_not_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model.bin is a pickle"):
        SafetensorsWeights(tmp_path)
    with pytest.raises(ValueError, match=r"neither a folder nor a \.gguf file"):
        load_model(str(tmp_path / "pytorch_model.bin"))
