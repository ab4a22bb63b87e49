"""``gelu()`` and what torch must know of its two operators: shapes, gradients, batching.

The operators themselves are declared in ``csrc/binding.cpp``. A call goes gelu() -> the dispatcher ->
the autograd kernel registered here -> the dispatcher again -> the C++ or CUDA kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from custom_gelu_ext.extension import LOADED, has_kernel
from custom_gelu_ext.second_derivative import second_derivative

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Return GELU of each element: x Phi(x), Phi being the normal distribution function.

    Args:
        x: any shape; float32, float64, float16 or bfloat16. Tensors without gaps or overlaps
            (contiguous, channels-last, transposed) are read in place, others are copied first.
        approximate: "none" for x Phi(x); "tanh" for 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    Returns:
        A tensor of x's shape, dtype and device, with the strides ``torch.empty_like(x)`` gives.
        Accurate over the whole left tail; gelu(-inf) is -0.0, gelu(inf) is inf, NaN stays NaN.
        Differentiable any number of times in reverse mode.

    Raises:
        TypeError: ``x`` is no tensor, or of another dtype.
        ValueError: ``approximate`` is neither "none" nor "tanh".

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"gelu: x must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(
            "gelu: dtype must be float32, float64, float16 or bfloat16, "
            f"got {x.dtype}; convert first: x.float()"
        )
    check_approximate(approximate)
    if not has_kernel(x.device):
        return F.gelu(x, approximate=approximate)
    result: Tensor = torch.ops.custom_gelu_ext.gelu.default(x, approximate)
    return result


def check_approximate(approximate: str) -> None:
    """Raise ValueError unless ``approximate`` names one of the two formulas."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")


# -- Fake kernels: what torch.compile traces with. Shapes, dtypes and strides, no values. -------------


def _fake_gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return torch.empty_like(x)


def _fake_gelu_backward(grad: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    return torch.empty_like(x)


# -- Autograd: the backward of each operator, in terms of the operators. ------------------------------


def _save_gelu(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    x, ctx.approximate = inputs
    ctx.save_for_backward(x)


def _backward_of_gelu(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return torch.ops.custom_gelu_ext.gelu_backward.default(grad, x, ctx.approximate), None


def _save_gelu_backward(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    grad, x, ctx.approximate = inputs
    ctx.save_for_backward(grad, x)


def _backward_of_gelu_backward(
    ctx: Any, grad_of_output: Tensor
) -> tuple[Tensor | None, Tensor | None, None]:
    # The output is grad * gelu'(x): linear in grad, and gelu'' in x.
    grad, x = ctx.saved_tensors
    to_grad = to_x = None
    if ctx.needs_input_grad[0]:
        to_grad = torch.ops.custom_gelu_ext.gelu_backward.default(
            grad_of_output, x, ctx.approximate
        )
    if ctx.needs_input_grad[1]:
        curvature = second_derivative(x, ctx.approximate)
        to_x = (curvature * grad * grad_of_output).to(x.dtype)
    return to_grad, to_x, None


# -- vmap: an elementwise operator does not mind one dimension more. ----------------------------------


def _vmap_gelu(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, approximate: str = "none"
) -> tuple[Tensor, int | None]:
    return torch.ops.custom_gelu_ext.gelu.default(x, approximate), in_dims[0]


def _vmap_gelu_backward(
    info: Any, in_dims: tuple[int | None, ...], grad: Tensor, x: Tensor, approximate: str = "none"
) -> tuple[Tensor, int]:
    def batched(tensor: Tensor, dim: int | None) -> Tensor:
        return (
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        )

    grad, x = batched(grad, in_dims[0]), batched(x, in_dims[1])
    return torch.ops.custom_gelu_ext.gelu_backward.default(grad, x, approximate), 0


if LOADED:
    _GELU, _GELU_BACKWARD = "custom_gelu_ext::gelu", "custom_gelu_ext::gelu_backward"
    torch.library.register_fake(_GELU, _fake_gelu)
    torch.library.register_fake(_GELU_BACKWARD, _fake_gelu_backward)
    torch.library.register_autograd(_GELU, _backward_of_gelu, setup_context=_save_gelu)
    torch.library.register_autograd(
        _GELU_BACKWARD, _backward_of_gelu_backward, setup_context=_save_gelu_backward
    )
    torch.library.register_vmap(_GELU, _vmap_gelu)
    torch.library.register_vmap(_GELU_BACKWARD, _vmap_gelu_backward)
