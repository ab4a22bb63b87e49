"""``gelu()``: checks its arguments and calls the operator, or torch where there is no kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from custom_gelu_ext import operators
from custom_gelu_ext.extension import has_kernel

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


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
    if not isinstance(x, Tensor):
        raise TypeError(f"gelu: x must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(
            "gelu: dtype must be float32, float64, float16 or bfloat16, "
            f"got {x.dtype}; convert first: x.float()"
        )
    if x.layout != torch.strided:
        raise TypeError(f"gelu: x must be dense, got {x.layout}; convert first: x.to_dense()")
    check_approximate(approximate)
    if not has_kernel(x.device):
        return F.gelu(x, approximate=approximate)
    return operators.forward(x, approximate)


def check_approximate(approximate: str) -> None:
    """Raise ValueError unless ``approximate`` names one of the two formulas."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
