"""The functions: they check their arguments and call the operator, or torch where it has none."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import (
    handle_torch_function,
    has_torch_function_unary,
    has_torch_function_variadic,
)

from custom_gelu_ext import transforms
from custom_gelu_ext.checks import check_alike, check_approximate, check_bias, check_tensor
from custom_gelu_ext.extension import build_info, has_kernel
from custom_gelu_ext.operators import ops

# The whole call in C++, or None where there is something to check or to choose, which is done here.
_gelu_if_ordinary: Callable[[Tensor, str], Tensor | None]
_gelu_if_ordinary = getattr(build_info.module, "gelu", lambda x, approximate: None)
_is_compiling = torch.compiler.is_compiling  # each lookup costs a small GELU a percent of its time


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
    if has_torch_function_unary(x):
        return handle_torch_function(gelu, (x,), x, approximate)
    check_tensor("gelu", "x", x)
    check_approximate(approximate)
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
    if has_torch_function_unary(x):
        return handle_torch_function(gelu_, (x,), x, approximate)
    check_tensor("gelu_", "x", x)
    check_approximate(approximate)
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
    the same order: the same input, as well aligned, gives the same bits.

    Args:
        x: [..., C]; float32, float64, float16 or bfloat16. Read in place if its last dimension is
            contiguous and its rows are evenly spaced, else copied first.
        bias: [C], of x's dtype; under autocast it is converted.
        approximate: see :func:`gelu`.

    Returns:
        A contiguous tensor of x's shape and dtype.

    Raises:
        TypeError: an argument is no tensor, sparse, or of another dtype.
        ValueError: the shapes or devices do not fit, or ``approximate`` is unknown.
    """
    if has_torch_function_variadic(x, bias):
        return handle_torch_function(bias_gelu, (x, bias), x, bias, approximate)
    check_tensor("bias_gelu", "x", x)
    check_tensor("bias_gelu", "bias", bias)
    check_approximate(approximate)
    if bias.dtype != x.dtype and autocast_dtype(x):
        bias = bias.to(x.dtype)
    if not has_kernel(x) or transforms.transformed():
        check_bias(x, bias)
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
        ValueError: the shapes or devices differ, or ``approximate`` is unknown.

    Source: Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202.
    """
    if has_torch_function_variadic(gate, value):
        return handle_torch_function(geglu, (gate, value), gate, value, approximate)
    check_tensor("geglu", "gate", gate)
    check_tensor("geglu", "value", value)
    check_approximate(approximate)
    if gate.dtype != value.dtype and autocast_dtype(gate):
        wide = torch.promote_types(gate.dtype, value.dtype)
        gate, value = gate.to(wide), value.to(wide)
    if not has_kernel(gate) or transforms.transformed():
        check_alike("geglu: value", value, "gate", gate)
        return gelu(gate, approximate) * value
    return ops.geglu.default(gate, value, approximate)  # type: ignore[no-any-return]


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return what autocast, where it is on for ``x``'s device, converts to; else None."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return None  # of the meta device autocast knows nothing, and says so by an error
    return torch.get_autocast_dtype(x.device.type)
