"""The operators on fake and meta tensors, which have no values: checks, shapes and strides.

torch.compile and torch.export trace with these. What they let through must be what the kernels do
(``csrc/torch/operators.h``), and so must the strides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from custom_gelu_ext.checks import check_alike, check_approximate, check_bias, check_dtype


def _check(x: Tensor, approximate: str = "none") -> None:
    check_approximate(approximate)
    check_dtype(x)


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    _check(x, approximate)
    return torch.empty_like(x)


def _gelu_(x: Tensor, approximate: str = "none") -> None:
    _check(x, approximate)


def _gelu_backward(grad: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    check_alike("gelu_backward: grad", grad, "x", x)
    return _gelu(x, approximate)


def _gelu_double_backward(
    grad_grad: Tensor, grad: Tensor, x: Tensor, approximate: str = "none"
) -> tuple[Tensor, Tensor]:
    check_alike("gelu_double_backward: grad_grad", grad_grad, "x", x)
    check_alike("gelu_double_backward: grad", grad, "x", x)
    return _gelu(x, approximate), torch.empty_like(x)


def _bias_gelu(x: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    check_bias(x, bias)
    _check(x, approximate)
    return x.new_empty(x.shape)


def _bias_gelu_backward(
    grad: Tensor, x: Tensor, bias: Tensor, approximate: str = "none"
) -> tuple[Tensor, Tensor]:
    check_bias(x, bias)
    check_alike("bias_gelu_backward: grad", grad, "x", x)
    _check(x, approximate)
    return x.new_empty(x.shape), bias.new_empty(bias.shape)


def _geglu(gate: Tensor, value: Tensor, approximate: str = "none") -> Tensor:
    check_alike("geglu: value", value, "gate", gate)
    return _gelu(gate, approximate)


def _geglu_backward(
    grad: Tensor, gate: Tensor, value: Tensor, approximate: str = "none"
) -> tuple[Tensor, Tensor]:
    check_alike("geglu_backward: value", value, "gate", gate)
    check_alike("geglu_backward: grad", grad, "gate", gate)
    return _gelu(gate, approximate), torch.empty_like(gate)


def _code_size(bits: int, x: Tensor) -> int:
    return x.numel() if bits == 8 else (x.numel() + 7) // 8


def _encode(bits: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def fake(x: Tensor, approximate: str = "none") -> tuple[Tensor, Tensor]:
        _check(x, approximate)
        return x.new_empty(x.shape), x.new_empty((_code_size(bits, x),), dtype=torch.uint8)

    return fake


def _gelu_8bit_backward(grad: Tensor, code: Tensor) -> Tensor:
    return _decode(8, grad, code)


def _gelu_1bit_backward(
    grad: Tensor, value: Tensor, code: Tensor, approximate: str = "none"
) -> Tensor:
    check_alike("gelu_1bit_backward: grad", grad, "value", value)
    check_approximate(approximate)
    return _decode(1, grad, code)


def _decode(bits: int, grad: Tensor, code: Tensor) -> Tensor:
    _check(grad)
    size = _code_size(bits, grad)
    if code.dtype != torch.uint8 or code.shape != (size,) or code.device != grad.device:
        raise ValueError(
            f"gelu: the code must be uint8 [{size}] on grad's device, as forward returned it; "
            f"got {code.dtype} {list(code.shape)}"
        )
    return grad.new_empty(grad.shape)


FAKES: dict[str, Callable[..., Any]] = {
    "gelu": _gelu,
    "gelu_": _gelu_,
    "gelu_backward": _gelu_backward,
    "gelu_double_backward": _gelu_double_backward,
    "bias_gelu": _bias_gelu,
    "bias_gelu_backward": _bias_gelu_backward,
    "geglu": _geglu,
    "geglu_backward": _geglu_backward,
    "gelu_8bit": _encode(8),
    "gelu_8bit_backward": _gelu_8bit_backward,
    "gelu_1bit": _encode(1),
    "gelu_1bit_backward": _gelu_1bit_backward,
}
