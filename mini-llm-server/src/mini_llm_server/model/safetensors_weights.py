"""A folder's weights in safetensors files, whole or in shards; a tensor is read when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from mini_llm_server.model.json_fields import read_json

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class SafetensorsWeights(Mapping[str, Tensor]):
    """The tensors of a model's folder, on the CPU and in the dtype that the file has.

    Only safetensors are read: a pickle (pytorch_model.bin) runs what code it likes when opened.

    Raises:
        FileNotFoundError: the folder holds no safetensors, or a shard is missing.
        ValueError: a file is cut off or is something else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}  # the package has no types
        for name in _shards(folder):
            path = folder / name
            if not path.is_file():
                raise FileNotFoundError(f"{folder} lacks {name}, a part of its weights")
            try:
                self._files[name] = safetensors.safe_open(path, framework="pt", device="cpu")
            except (safetensors.SafetensorError, OSError, ValueError) as error:
                raise ValueError(f"{path} is no whole safetensors file: {error}") from error
        self._file_of = {
            key: name
            for name, file in self._files.items()
            for key in file.keys()  # noqa: SIM118 (it cannot be iterated itself)
        }

    def __getitem__(self, name: str) -> Tensor:
        path = self._file_of[name]
        try:
            tensor: Tensor = self._files[path].get_tensor(name)
        except (safetensors.SafetensorError, RuntimeError, ValueError, TypeError) as error:
            raise ValueError(f"{name} in {self._folder / path} cannot be read: {error}") from error
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            raise ValueError(
                f"{name} in {self._folder / path} is of type {tensor.dtype}: quantised weights "
                "are not supported in safetensors"
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def _shards(folder: Path) -> list[str]:
    """Return the names of the folder's weight files."""
    if (folder / _WHOLE).is_file():
        return [_WHOLE]
    if not (folder / _INDEX).is_file():
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt*")]
        also = f" ({pickles[0].name} is a pickle, which can run code: not read)" if pickles else ""
        raise FileNotFoundError(f"{folder} holds no {_WHOLE} and no {_INDEX}{also}")
    weight_map = read_json(folder / _INDEX).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or not all(isinstance(n, str) and n.endswith(".safetensors") for n in names):
        raise ValueError(f"{folder / _INDEX} has no weight_map of names of safetensors files")
    if outside := sorted(n for n in names if Path(n).name != n):
        raise ValueError(f"{folder / _INDEX} points outside its folder: {outside[0]!r}")
    return sorted(names)
