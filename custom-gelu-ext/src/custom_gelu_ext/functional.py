"""The functions: they check their arguments and call the operator, or torch where it has none."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from custom_gelu_ext import transforms
from custom_gelu_ext.extension import build_info, has_kernel
from custom_gelu_ext.operators import ops

# The whole call in C++, or None where there is something to check or to choose, which is done here.
_gelu_if_ordinary: Callable[[Tensor, str], Tensor | None]
_gelu_if_ordinary = getattr(build_info.module, "gelu", lambda x, approximate: None)
_is_compiling = torch.compiler.is_compiling  # each lookup costs a small GELU a percent of its time

DTYPES = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Return GELU of each element: x Phi(x), Phi being the normal distribution function.

    Args:
        x: any shape; float32, float64, float16 or bfloat16. Tensors without gaps or overlaps
            (contiguous, channels-last, transposed) are read in place, others are copied first.
        approximate: "none" for x Phi(x); "tanh" for x (1 + tanh(u)) / 2 with
            u = sqrt(2/pi) (x + 0.044715 x^3).

    Returns:
        A tensor of x's shape, dtype and device, with the strides ``torch.empty_like(x)`` gives.
        Accurate over the whole left tail; gelu(-inf) is -0.0, gelu(inf) is inf, NaN stays NaN.
        Differentiable any number of times in reverse mode, and twice with forward mode.

    Raises:
        TypeError: ``x`` is no tensor, sparse, or of another dtype.
        ValueError: ``approximate`` is neither "none" nor "tanh".

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415.
    """
    if not _is_compiling() and (y := _gelu_if_ordinary(x, approximate)) is not None:
        return y
    check("gelu", "x", x, approximate)
    if not has_kernel(x):
        return F.gelu(x, approximate=approximate)
    return transforms.gelu(x, approximate)


def gelu_(x: Tensor, approximate: str = "none") -> Tensor:
    """Write gelu(x) over ``x`` and return it: for inference, where the input is not needed again.

    Args and errors are those of :func:`gelu`.

    Raises:
        RuntimeError: ``x`` requires a gradient: backward needs what would be overwritten. Or a
            transform of ``torch.func`` is active.
    """
    check("gelu_", "x", x, approximate)
    if not has_kernel(x):
        return torch.ops.aten.gelu_(x, approximate=approximate)  # type: ignore[no-any-return]
    if transforms.transformed():
        raise RuntimeError("gelu_: not under torch.func or forward mode; use gelu(x)")
    ops.gelu_.default(x, approximate)
    return x


def bias_gelu(x: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    """Return gelu(x + bias) in one pass; backward gives both gradients in one pass too.

    The sum is not rounded to the dtype before GELU, so that 16-bit results are more accurate than
    those of two steps. The bias's gradient is summed in float32 (float64 for float64) and always in
    the same order: the same input gives the same bits.

    Args:
        x: [..., C]; float32, float64, float16 or bfloat16. Read in place if its last dimension is
            contiguous and its rows are evenly spaced, else copied first.
        bias: [C], of x's dtype; under autocast it is converted.
        approximate: see :func:`gelu`.

    Returns:
        A contiguous tensor of x's shape and dtype.

    Raises:
        TypeError: an argument is no tensor, sparse, or of another dtype.
        ValueError: the shapes do not fit, or ``approximate`` is unknown.
    """
    check("bias_gelu", "x", x, approximate)
    check("bias_gelu", "bias", bias, approximate)
    if bias.dtype != x.dtype and torch.is_autocast_enabled(x.device.type):
        bias = bias.to(x.dtype)
    if not has_kernel(x) or transforms.transformed():
        _check_bias(x, bias)
        return gelu(x + bias, approximate)
    return ops.bias_gelu.default(x, bias, approximate)  # type: ignore[no-any-return]


def geglu(gate: Tensor, value: Tensor, approximate: str = "none") -> Tensor:
    """Return gelu(gate) * value in one pass; backward gives both gradients in one pass too.

    Args:
        gate, value: of one shape, dtype and device; float32, float64, float16 or bfloat16. The
            halves of one tensor, ``x.chunk(2, dim=-1)``, are read in place.
        approximate: see :func:`gelu`.

    Returns:
        A tensor like ``torch.empty_like(gate)``.

    Raises:
        TypeError: an argument is no tensor, sparse, or of another dtype.
        ValueError: the shapes differ, or ``approximate`` is unknown.

    Source: Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202.
    """
    check("geglu", "gate", gate, approximate)
    check("geglu", "value", value, approximate)
    if gate.dtype != value.dtype and torch.is_autocast_enabled(gate.device.type):
        wide = torch.promote_types(gate.dtype, value.dtype)
        gate, value = gate.to(wide), value.to(wide)
    if not has_kernel(gate) or transforms.transformed():
        _check_alike(gate, value)
        return gelu(gate, approximate) * value
    return ops.geglu.default(gate, value, approximate)  # type: ignore[no-any-return]


def check(function: str, name: str, x: Tensor, approximate: str) -> None:
    """Raise TypeError or ValueError unless the kernels can take ``x`` and ``approximate``."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{function}: {name}'s dtype must be float32, float64, float16 or bfloat16, "
            f"got {x.dtype}; convert first: {name}.float()"
        )
    if x.layout != torch.strided:
        raise TypeError(
            f"{function}: {name} must be dense, got {x.layout}; convert first: {name}.to_dense()"
        )
    check_approximate(approximate)


def check_approximate(approximate: str) -> None:
    """Raise ValueError unless ``approximate`` names one of the two formulas."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")


def _check_bias(x: Tensor, bias: Tensor) -> None:
    if x.dim() < 1 or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"bias_gelu: bias's shape {list(bias.shape)} must be [C] where x's last dimension is "
            f"C; x's shape is {list(x.shape)}"
        )
    if bias.dtype != x.dtype:
        raise TypeError(f"bias_gelu: bias's dtype {bias.dtype} must be x's, {x.dtype}")


def _check_alike(gate: Tensor, value: Tensor) -> None:
    if gate.shape != value.shape:
        raise ValueError(
            f"geglu: value's shape {list(value.shape)} must be gate's, {list(gate.shape)}"
        )
    if gate.dtype != value.dtype:
        raise TypeError(f"geglu: value's dtype {value.dtype} must be gate's, {gate.dtype}")
