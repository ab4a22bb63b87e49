"""Reads a GGUF file: its metadata, and its tensors as float32.

The layout is in ggml's docs/gguf.md: a header, key-value pairs, tensor descriptions, then data
at aligned offsets. Written out here because start-up time counts: the `gguf` package builds a
view for each of the 10^5 strings of a vocabulary and takes many seconds over them.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SCALARS = {  # GGUF's value types: how struct reads each
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i",
    6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32
_MOST_ALIGNMENT = 2**20
_MOST_DIMENSIONS = 4  # ggml's own limit


@dataclass(frozen=True)
class _TensorInfo:
    shape: tuple[int, ...]  # outermost first, as torch has it; the file says innermost first
    kind: int
    offset: int


class GGUFFile:
    """An open GGUF file.

    Attributes:
        metadata: the key-value pairs; numbers, strings and lists of them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no GGUF of version 2 or 3, it ends too early, or it is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.stat().st_size == 0:  # mmap refuses it without a name
            raise ValueError(f"{path} is no GGUF file: it is empty")
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        magic, version = self._data[:4], 0
        if magic == b"GGUF":
            self._at = 4
            version = self._scalar("<I")
        if version not in (2, 3):
            raise ValueError(f"{path} is no GGUF file of version 2 or 3: it starts with {magic!r}")
        self.metadata: dict[str, Any] = {}
        self._infos: dict[str, _TensorInfo] = {}
        try:
            num_tensors, num_pairs = self._scalar("<Q"), self._scalar("<Q")
            for _ in range(num_pairs):
                key = self._string()
                self.metadata[key] = self._value(self._scalar("<I"))
            for _ in range(num_tensors):
                name = self._string()
                self._infos[name] = self._tensor_info()
        except (struct.error, OverflowError) as error:
            raise ValueError(f"{path} is cut off: its header ends at byte {self._at}") from error
        except (UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is broken at byte {self._at} of its header") from error
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= _MOST_ALIGNMENT:
            raise ValueError(f"{path} has general.alignment {alignment!r}: it is broken")
        self._data_start = -(-self._at // alignment) * alignment

    def tensor_names(self) -> list[str]:
        """Return the names of all tensors, in the file's order."""
        return list(self._infos)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor dequantised to float32, with torch's order of dimensions.

        Raises:
            ValueError: it is stored in a type that is not read here, or the file ends before it.
        """
        info = self._infos[name]
        if info.kind not in _KINDS:
            known = ", ".join(kind.name for kind in _KINDS.values())
            raise ValueError(f"{name} in {self.path} has ggml type {info.kind}: read are {known}")
        kind = _KINDS[info.kind]
        numel = 1
        for size in info.shape:
            numel *= size
        if numel % kind.block:
            raise ValueError(
                f"{name} in {self.path} has {numel} elements, and {kind.name} comes in blocks of "
                f"{kind.block}"
            )
        start = self._data_start + info.offset
        raw = self._data[start : start + numel // kind.block * kind.block_bytes]
        if len(raw) < numel // kind.block * kind.block_bytes:
            raise ValueError(f"{self.path} is cut off: {name} lies beyond its end")
        blocks = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, kind.block_bytes)
        return kind.decode(blocks).view(info.shape)

    def _scalar(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return value

    def _string(self) -> str:
        start = self._at + 8
        self._at = start + self._scalar("<Q")
        if self._at > len(self._data):
            raise struct.error
        return self._data[start : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            item, count = self._scalar("<I"), self._scalar("<Q")
            return [self._value(item) for _ in range(count)]
        if kind not in _SCALARS:
            raise ValueError(f"{self.path} holds a value of unknown type {kind} at {self._at}")
        return self._scalar(_SCALARS[kind])

    def _tensor_info(self) -> _TensorInfo:
        num_dimensions = self._scalar("<I")
        if num_dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"{self.path} holds a tensor of {num_dimensions} dimensions")
        shape = [self._scalar("<Q") for _ in range(num_dimensions)]
        kind, offset = self._scalar("<I"), self._scalar("<Q")
        return _TensorInfo(tuple(reversed(shape)), kind, offset)


@dataclass(frozen=True)
class _Kind:
    """How a ggml type stores a block of elements. `decode` takes uint8 [blocks, block_bytes]."""

    name: str
    block: int
    block_bytes: int
    decode: Callable[[Tensor], Tensor]


def _half(blocks: Tensor, first: int) -> Tensor:
    """Return the float16 at byte `first` of each block as float32 [blocks, 1]."""
    return blocks[:, first : first + 2].contiguous().view(torch.float16).float()


def _decode_f32(blocks: Tensor) -> Tensor:
    return blocks.view(torch.float32)


def _decode_q4_1(blocks: Tensor) -> Tensor:
    """scale, minimum, then 16 bytes: elements 0-15 in the low halves, 16-31 in the high ones."""
    quants = blocks[:, 4:]
    values = torch.empty(len(blocks), 32)
    values[:, :16] = quants & 15
    values[:, 16:] = quants >> 4
    return values.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _decode_q8_0(blocks: Tensor) -> Tensor:
    """scale, then 32 signed bytes."""
    return blocks[:, 2:].view(torch.int8).float().mul_(_half(blocks, 0))


_KINDS = {
    0: _Kind("F32", 1, 4, _decode_f32),
    3: _Kind("Q4_1", 32, 20, _decode_q4_1),
    8: _Kind("Q8_0", 32, 34, _decode_q8_0),
}
