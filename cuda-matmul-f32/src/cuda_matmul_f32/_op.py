"""The op ``cuda_matmul_f32::matmul``: what torch must know of it besides kernels and gradients.

The op multiplies two matrices, or two batches of equally many. Its fake kernels give torch.compile
the result's shape without computing it. Where an extension, or its CUDA half, could not be built,
torch's own matmul stands in for the kernels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cuda_matmul_f32._kernels import build_info

_NAME = "cuda_matmul_f32::matmul"
# Typed here, because torch's own checks are not. Unlike `if`, they become checks at run time where
# a size is not known while tracing.
_check_type: Callable[[bool, Callable[[], str]], None] = torch._check_type
_check_value: Callable[[bool, Callable[[], str]], None] = torch._check_value


def _check_dtype(name: str, x: Tensor) -> None:
    _check_type(
        x.dtype == torch.float32,
        lambda: f"{name} must be float32, not {x.dtype}: use {name}.float()",
    )


def _check(a: Tensor, b: Tensor) -> None:
    """Refuse what the kernels refuse, in the same words (csrc/operands.h)."""
    _check_dtype("a", a)
    _check_dtype("b", b)
    _check_value(a.device == b.device, lambda: f"a is on {a.device} but b on {b.device}")
    _check_value(
        a.dim() == b.dim() and a.dim() in (2, 3),
        lambda: f"the op takes two matrices or two batches of them, not {a.shape} and {b.shape}",
    )
    _check_value(
        a.shape[-1] == b.shape[-2],
        lambda: (
            f"a {tuple(a.shape)} has {a.shape[-1]} columns but b {tuple(b.shape)} has "
            f"{b.shape[-2]} rows: they must be equal"
        ),
    )
    _check_value(
        a.dim() == 2 or a.shape[0] == b.shape[0],
        lambda: f"a {tuple(a.shape)} and b {tuple(b.shape)} are batches of unequal length",
    )


def _fake(a: Tensor, b: Tensor, kernel: str) -> Tensor:
    _check(a, b)
    return a.new_empty((*a.shape[:-1], b.shape[-1]))


def _fake_out(a: Tensor, b: Tensor, kernel: str, *, out: Tensor) -> None:
    _check(a, b)
    _check_dtype("out", out)
    shape = (*a.shape[:-1], b.shape[-1])
    _check_value(out.device == a.device, lambda: f"out is on {out.device} but a on {a.device}")
    _check_value(
        out.shape == shape,
        lambda: f"out {tuple(out.shape)} must have the result's shape {shape}: it is not resized",
    )


def _torch_matmul(a: Tensor, b: Tensor, kernel: str) -> Tensor:
    _check(a, b)
    if kernel != "auto":
        raise ValueError(
            f"no kernel {kernel!r} for {a.device.type} tensors ({build_info.missing}): use 'auto'"
        )
    if a.is_cuda:
        if torch.backends.cuda.matmul.allow_tf32:
            raise RuntimeError(
                f"no CUDA kernels were built ({build_info.missing}) and torch's own would use "
                f"TF32, which precision='ieee' excludes: set "
                f"torch.backends.cuda.matmul.allow_tf32 = False"
            )
        warnings.warn(
            f"no CUDA kernels were built ({build_info.missing}): torch's own are used", stacklevel=2
        )
    return torch.matmul(a, b)


def _torch_matmul_out(a: Tensor, b: Tensor, kernel: str, *, out: Tensor) -> None:
    _fake_out(a, b, kernel, out=out)
    out.copy_(_torch_matmul(a, b, kernel))


def _stand_in() -> None:
    """Register torch's matmul where kernels are missing: for all tensors, or for CUDA's."""
    Library: Any = torch.library.Library  # untyped in torch
    if build_info.module is None:
        library = Library("cuda_matmul_f32", "DEF")
        library.define("matmul(Tensor a, Tensor b, str kernel) -> Tensor")
        library.define("matmul.out(Tensor a, Tensor b, str kernel, *, Tensor(a!) out) -> ()")
        key = "CompositeImplicitAutograd"  # torch's matmul brings its own derivatives
    else:
        library = Library("cuda_matmul_f32", "IMPL")
        key = "CUDA"
    library.impl("matmul", _torch_matmul, key)
    library.impl("matmul.out", _torch_matmul_out, key)
    _libraries.append(library)


_libraries: list[object] = []  # torch forgets a library's kernels when the object dies
if not build_info.cuda:
    _stand_in()
if build_info.module is not None:
    torch.library.register_fake(_NAME, _fake)
    torch.library.register_fake(f"{_NAME}.out", _fake_out)

# (a [M, K], b [K, N], kernel) -> [M, N], or (a [B, M, K], b [B, K, N], kernel) -> [B, M, N]
op: Callable[[Tensor, Tensor, str], Tensor] = torch.ops.cuda_matmul_f32.matmul.default
op_out: Callable[..., None] = torch.ops.cuda_matmul_f32.matmul.out
