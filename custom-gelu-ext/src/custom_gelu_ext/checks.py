"""What the kernels ask of their arguments, where no kernel looks: torch's GELU, fake tensors.

The messages are those of ``csrc/torch/operands.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))


def check_tensor(function: str, name: str, x: Tensor) -> None:
    """Raise TypeError unless ``x`` is a tensor that the kernels can take."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise _wrong_dtype(f"{function}: {name}'s dtype", x, name)
    if x.layout != torch.strided:
        raise TypeError(
            f"{function}: {name} must be dense, got {x.layout}; convert first: {name}.to_dense()"
        )


def check_dtype(x: Tensor) -> None:
    """Raise TypeError unless the kernels know ``x``'s dtype; with their words."""
    if x.dtype not in DTYPES:
        raise _wrong_dtype("gelu: dtype", x, "x")


def _wrong_dtype(what: str, x: Tensor, name: str) -> TypeError:
    return TypeError(
        f"{what} must be float32, float64, float16 or bfloat16, got {x.dtype}; "
        f"convert first: {name}.float()"
    )


def check_approximate(approximate: str) -> None:
    """Raise ValueError unless ``approximate`` names one of the two formulas."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")


def check_alike(what: str, one: Tensor, whose: str, other: Tensor) -> None:
    """Raise unless two tensors agree in shape, dtype and device; the names are the message's."""
    if one.shape != other.shape:
        raise ValueError(f"{what}'s shape {list(one.shape)} must be {whose}'s, {list(other.shape)}")
    _check_kind(what, one, whose, other)


def check_bias(x: Tensor, bias: Tensor) -> None:
    """Raise unless ``bias`` is [C] for an ``x`` of [..., C], of its dtype and device."""
    if x.dim() < 1 or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"bias_gelu: bias's shape {list(bias.shape)} must be [C] where x's last dimension is "
            f"C; x's shape is {list(x.shape)}"
        )
    _check_kind("bias_gelu: bias", bias, "x", x)


def _check_kind(what: str, one: Tensor, whose: str, other: Tensor) -> None:
    if one.dtype != other.dtype:
        raise TypeError(f"{what}'s dtype {one.dtype} must be {whose}'s, {other.dtype}")
    if one.device != other.device:
        raise ValueError(f"{what} is on {one.device} but {whose} on {other.device}")
