"""What verification does to tensors: upcast, snapshot, overwrite in place, poison free memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

Inputs = tuple[Tensor, ...]
MOST_POISON = 4 << 30  # bytes, beside the tensors that are measured
PIECE = 1 << 27  # bytes compared at a time


def draw(make: Callable[[torch.Generator], Any], generator: torch.Generator, case: str) -> Inputs:
    """Return fresh inputs; TypeError where the benchmark draws something else than tensors."""
    inputs = make(generator)
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, tuple) or not all(isinstance(each, Tensor) for each in inputs):
        raise TypeError(
            f"case {case!r}: inputs() returned {type(inputs).__name__}; "
            "return a tuple of tensors, and bind other arguments in the function"
        )
    return inputs


def outputs_of(returned: Any) -> Inputs | None:
    """Return the tensors that a function returned, or None where it returned something else."""
    if isinstance(returned, Tensor):
        return (returned,)
    if isinstance(returned, (tuple, list)) and all(isinstance(each, Tensor) for each in returned):
        return tuple(returned)
    return None


def upcast(inputs: Inputs) -> Inputs:
    """Return copies with floating-point tensors in float64, strides and requires_grad kept."""
    return tuple(
        each.detach().to(torch.float64, copy=True).requires_grad_(each.requires_grad)
        if each.is_floating_point()
        else each.clone()
        for each in inputs
    )


def snapshot(inputs: Inputs) -> Inputs:
    """Return copies of the contents."""
    return tuple(each.detach().clone() for each in inputs)


def same_bits(one: Inputs, other: Inputs) -> bool:
    """Say whether the contents are the same, bit for bit: NaN equals itself, 0 is not -0.

    A piece at a time: `torch.equal` needs a byte of memory for each one that it compares.
    """

    def bits(each: Tensor) -> Sequence[Tensor]:
        return torch.split(each.detach().contiguous().reshape(-1).view(torch.uint8), PIECE)

    return all(
        torch.equal(a, b)
        for mine, theirs in zip(one, other, strict=True)
        for a, b in zip(bits(mine), bits(theirs), strict=True)
    )


def overwrite(inputs: Inputs, contents: Inputs) -> None:
    """Put other contents into the same memory, behind the back of a cache.

    Through `.data`, which neither autograd nor the tensor's version counter sees: an answer that
    was stored by address, or by address and version, is now a wrong one.
    """
    for into, source in zip(inputs, contents, strict=True):
        # Along a stride of 0 (an expanded tensor) the same memory stands many times: write it once.
        once = tuple(
            slice(0, 1) if stride == 0 and size > 1 else slice(None)
            for size, stride in zip(into.shape, into.stride(), strict=True)
        )
        into.data[once].copy_(source.detach()[once])


def poison(
    like: Sequence[Tensor], dtypes: Sequence[torch.dtype], device: torch.device, release: bool
) -> list[Tensor]:
    """Fill free memory of the outputs' sizes with NaN, so that an output left unwritten shows.

    An allocator hands out what was freed last. Without this, `torch.empty` in an implementation
    would get the memory of an earlier, right answer, and half an answer would look whole. Hold what
    this returns until the call is over: it keeps the poisoned blocks apart, which an allocator
    would else join with free memory around them and cut anew. (An output too large for several
    gets one, which is no part of a larger block.) `release` gives what else the GPU's allocator
    keeps back to the driver.
    """
    if release:
        release_cached(device)
    between: list[Tensor] = []
    for each, dtype in zip(like, dtypes, strict=True):
        value = float("nan") if dtype.is_floating_point else 101
        # malloc needs room to align the block that it takes from this one; CUDA's allocator takes
        # the smallest block that fits.
        count = each.numel() + (0 if device.type == "cuda" else 64)
        # Several, because workspaces of the same size may take the first ones.
        several = max(1, min(8, MOST_POISON // max(1, count * dtype.itemsize)))
        blocks = [torch.full((count,), value, dtype=dtype, device=device) for _ in range(several)]
        between += blocks[1::2]
        del blocks
    return between


def release_cached(device: torch.device) -> None:
    """Give the free memory that the GPU's allocator keeps back to the driver."""
    if device.type == "cuda":
        with suppress(RuntimeError):  # after a capture that failed, torch refuses
            torch.cuda.empty_cache()


def spoil(outputs: Inputs) -> None:
    """Destroy answers before their memory is free: the next function may return it unwritten."""
    for each in outputs:
        memory = torch.empty(0, dtype=torch.uint8, device=each.device)
        memory.set_(each.untyped_storage()).fill_(0xFF)  # a NaN in every floating-point format


def share_memory(one: Inputs, other: Inputs) -> bool:
    """Say whether a tensor of one uses the storage of a tensor of the other."""

    def storages(tensors: Inputs) -> set[int]:
        return {each.untyped_storage().data_ptr() for each in tensors if each.numel()}

    return bool(storages(one) & storages(other))


def size_in_bytes(tensors: Inputs) -> int:
    """Return the memory that the tensors' elements take."""
    return sum(each.numel() * each.element_size() for each in tensors)
