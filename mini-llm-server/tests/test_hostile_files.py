"""Truncated, flipped and crafted model files: a clear error or a model, never a crash or a hang."""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from mini_llm_server.model.dummy import random_weights
from mini_llm_server.model.gguf import GGUFFile
from mini_llm_server.model.loader import load_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CONFIG = {
    "model_type": "llama", "vocab_size": 260, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 64, "tie_word_embeddings": True, "eos_token_id": 1,
}  # fmt: skip
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny Llama that loads."""
    from mini_llm_server.model.hf_config import config_from_json

    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(random_weights(config_from_json(CONFIG, "")), folder / "model.safetensors")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    load_model(str(folder), device="cpu")
    return folder


@pytest.fixture(scope="module")
def whole_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole tiny Llama in a GGUF file that loads."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (
        ("context_length", 64), ("embedding_length", 32), ("block_count", 1),
        ("feed_forward_length", 32), ("attention.head_count", 2), ("attention.head_count_kv", 1),
    ):  # fmt: skip
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.tokens", alphabet)
    writer.add_array("tokenizer.ggml.token_type", [1] * len(alphabet))
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    for name in ("bos", "eos"):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", 0)
    writer.add_string("tokenizer.chat_template", TEMPLATE)
    shapes = {
        "token_embd": (len(alphabet), 32), "output_norm": (32,), "blk.0.attn_norm": (32,),
        "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32), "blk.0.ffn_norm": (32,), "blk.0.ffn_gate": (32, 32),
        "blk.0.ffn_up": (32, 32), "blk.0.ffn_down": (32, 32),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    load_model(str(path), device="cpu")
    return path.read_bytes()


def refused_or_loaded(path: Path) -> str:
    """Return the error's message, or "" if it is a model after all; anything else fails the test.

    In Python's own terms: a panic of a library written in Rust is no Exception, and passes.
    """
    begin = time.monotonic()
    try:
        load_model(str(path), device="cpu")
        message = ""
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        assert message
    assert time.monotonic() - begin < 10
    return message


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Cut it, flip bytes, overwrite a number with a huge one, or repeat a part."""
    data = bytearray(whole)
    match rng.randrange(4):
        case 0:
            return bytes(data[: rng.randrange(len(data))])
        case 1:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        case 2:
            at = rng.randrange(len(data))
            huge = rng.choice([2**64 - 1, 2**63, 2**40, 2**31, 0])
            data[at : at + 8] = struct.pack("<Q", huge)
        case 3:
            start = rng.randrange(len(data))
            part = data[start : start + rng.randint(1, 64)]
            data[start:start] = part * rng.randint(1, 20)
    return bytes(data)


HEADER = 9000  # of the GGUF: most of the damage is done where it is read as structure


@pytest.mark.parametrize("seed", range(300))
def test_damaged_gguf(tmp_path: Path, whole_gguf: bytes, seed: int) -> None:
    rng = random.Random(seed)
    head = damaged(whole_gguf[:HEADER], rng) if seed % 3 else None
    path = tmp_path / "m.gguf"
    path.write_bytes(damaged(whole_gguf, rng) if head is None else head + whole_gguf[HEADER:])
    refused_or_loaded(path)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("seed", range(60))
def test_damaged_folder(tmp_path: Path, folder: Path, name: str, seed: int) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    path = copy / name
    whole = path.read_bytes()
    rng = random.Random(seed)
    limit = 2000 if name == "model.safetensors" and seed % 3 else len(whole)  # its header
    path.write_bytes(damaged(whole[:limit], rng) + whole[limit:])
    refused_or_loaded(copy)


def gguf_bytes(*parts: bytes) -> bytes:
    return b"GGUF" + struct.pack("<I", 3) + b"".join(parts)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def counts(tensors: int, pairs: int) -> bytes:
    return struct.pack("<QQ", tensors, pairs)


NESTED = struct.pack("<IQ", 9, 1) * 200_000  # an array in an array in an array ...
CRAFTED = {
    "a header alone": gguf_bytes(),
    "2^60 tensors": gguf_bytes(counts(2**60, 0)),
    "2^60 pairs": gguf_bytes(counts(0, 2**60)),
    "a string of 2^63 bytes": gguf_bytes(counts(0, 1), struct.pack("<Q", 2**63)),
    "a string of 2^64 - 1 bytes": gguf_bytes(counts(0, 1), struct.pack("<Q", 2**64 - 1)),
    "a key that is no UTF-8": gguf_bytes(counts(0, 1), string(b"\xff\xfe"), struct.pack("<I", 4)),
    "an array of 2^62": gguf_bytes(
        counts(0, 1), string(b"k"), struct.pack("<IIQ", 9, 0, 2**62), bytes(100)
    ),
    "arrays 200,000 deep": gguf_bytes(counts(0, 1), string(b"k"), struct.pack("<I", 9), NESTED),
    "a type that there is not": gguf_bytes(counts(0, 1), string(b"k"), struct.pack("<I", 99)),
    "alignment 0": gguf_bytes(counts(0, 1), string(b"general.alignment"), struct.pack("<II", 4, 0)),
    "alignment that is text": gguf_bytes(
        counts(0, 1), string(b"general.alignment"), struct.pack("<I", 8), string(b"many")
    ),
    "a tensor of 2^32 - 1 dimensions": gguf_bytes(
        counts(1, 0), string(b"t"), struct.pack("<I", 2**32 - 1), bytes(4000)
    ),
    "no metadata at all": gguf_bytes(counts(0, 0)),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_gguf(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(CRAFTED[name])
    message = refused_or_loaded(path)
    assert str(path) in message


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((2**62, 4), 0, "cut off"),  # the product is beyond 64 bits
        ((2**20, 2**20), 0, "cut off"),
        ((31,), 3, "blocks of 32"),
        ((4,), 77, "ggml type 77"),
    ],
)
def test_a_crafted_tensor(tmp_path: Path, shape: tuple[int, ...], kind: int, message: str) -> None:
    path = tmp_path / "m.gguf"
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    path.write_bytes(
        gguf_bytes(counts(1, 0), string(b"t"), sizes, struct.pack("<IQ", kind, 0), bytes(64))
    )
    with pytest.raises(ValueError, match=message):
        GGUFFile(path).tensor("t")


def test_a_gguf_of_another_shape_than_it_says(tmp_path: Path, whole_gguf: bytes) -> None:
    path = tmp_path / "m.gguf"
    for name, value in (
        ("embedding_length", 64),
        ("attention.head_count", 3),
        ("block_count", 2**31),
    ):
        at = whole_gguf.index(f"llama.{name}".encode()) + len(f"llama.{name}") + 4
        path.write_bytes(whole_gguf[:at] + struct.pack("<I", value) + whole_gguf[at + 4 :])
        assert refused_or_loaded(path), name


CRAFTED_FOLDER: dict[str, tuple[str, str]] = {
    "deep JSON": ("config.json", "[" * 100_000),
    "JSON that is a list": ("config.json", "[]"),
    "a config cut off": ("config.json", '{"model_type": "llama", '),
    "a vocabulary of 2^62": ("config.json", json.dumps({**CONFIG, "vocab_size": 2**62})),
    "10^9 layers": ("config.json", json.dumps({**CONFIG, "num_hidden_layers": 10**9})),
    "2^40 positions": ("config.json", json.dumps({**CONFIG, "max_position_embeddings": 2**40})),
    "10^400 positions": ("config.json", json.dumps({**CONFIG, "max_position_embeddings": 10**400})),
    "an end of text that is text": ("config.json", json.dumps({**CONFIG, "eos_token_id": "</s>"})),
    "a deep tokenizer": ("tokenizer.json", '{"model":' * 50_000),
    "a tokenizer without a model": ("tokenizer.json", "{}"),
    "a template that does not parse": ("chat_template.jinja", "{% for %}"),
    "a template of 10^5 ifs": ("chat_template.jinja", "{% if a %}" * 100_000),
    "a template that is no text": ("tokenizer_config.json", '{"chat_template": 5}'),
    "weights that are a pickle": ("model.safetensors", "\x80\x04cos\nsystem\n"),
    "weights with a huge header": ("model.safetensors", "\xff" * 8 + "{}"),
}


@pytest.mark.parametrize("name", CRAFTED_FOLDER)
def test_crafted_folder(tmp_path: Path, folder: Path, name: str) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    file, text = CRAFTED_FOLDER[name]
    (copy / file).write_bytes(text.encode("latin-1"))
    assert refused_or_loaded(copy), name


def test_an_index_that_points_elsewhere(tmp_path: Path, folder: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    for target in ("../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors")):
        index = {"weight_map": {"model.norm.weight": target}}
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "points outside" in refused_or_loaded(copy)


def test_a_template_that_never_ends_its_loops_is_refused_in_bounds(
    tmp_path: Path, folder: Path
) -> None:
    """Jinja's sandbox bounds one range; the conversation is then refused and nothing hangs."""
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / "chat_template.jinja").write_text("{% for i in range(10 ** 9) %}x{% endfor %}")
    tokenizer = load_model(str(copy), device="cpu").tokenizer
    with pytest.raises(ValueError, match="refuses"):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}])


def test_a_damaged_file_on_the_command_line_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(CRAFTED["arrays 200,000 deep"])
    done = subprocess.run(
        [sys.executable, "-m", "mini_llm_server.cli", "serve", "--port", "0", "--model", str(path)],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert str(path) in line
