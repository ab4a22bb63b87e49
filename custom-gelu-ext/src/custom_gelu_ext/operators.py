"""The operators in ``torch.ops.custom_gelu_ext``: what torch must know of them beyond kernels.

    gelu(x)                                           gelu(x)
    gelu_(x)                                          the same, written over x
    gelu_backward(grad, x)                            grad gelu'(x)
    gelu_double_backward(grad_grad, grad, x)          grad_grad gelu'(x), grad_grad grad gelu''(x)
    bias_gelu(x, bias)                                gelu(x + bias)
    bias_gelu_backward(grad, x, bias)                 grad gelu'(x + bias), its sum over rows
    geglu(gate, value)                                gelu(gate) value
    geglu_backward(grad, gate, value)                 grad value gelu'(gate), grad gelu(gate)
    gelu_8bit(x), gelu_1bit(x)                        gelu(x), a code of gelu'(x) in uint8
    gelu_8bit_backward(grad, code)                    grad gelu'(x)
    gelu_1bit_backward(grad, gelu(x), code)           grad gelu'(x)

each (but gelu_8bit_backward) with a last argument ``approximate``. ``csrc/schemas.h`` declares
them. A call goes to torch's dispatcher, which looks at the tensors and picks a function: first the
autograd one, which records what backward will need and calls the operator again below autograd,
then the C++ or CUDA kernel; or, where torch.compile traces, the fake one, which knows shapes and
strides only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from custom_gelu_ext.extension import LOADED
from custom_gelu_ext.second_derivative import second_derivative

NAMESPACE = "custom_gelu_ext"
ops = torch.ops.custom_gelu_ext


def records(*tensors: Tensor) -> bool:
    """Whether autograd wants to hear of an operation on these tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


# The fused backward operators are not differentiable as they stand. Where a derivative of theirs is
# wanted, they are put together from operators that are.


def _double_backward(
    grad_grad: Tensor, grad: Tensor, x: Tensor, approximate: str
) -> tuple[Tensor, Tensor]:
    to_x = second_derivative(x, approximate) * grad * grad_grad
    return ops.gelu_backward.default(grad_grad, x, approximate), to_x.to(x.dtype)


def _bias_gelu_backward(
    grad: Tensor, x: Tensor, bias: Tensor, approximate: str
) -> tuple[Tensor, Tensor]:
    grad_x = ops.gelu_backward.default(grad, x + bias, approximate)
    return grad_x, grad_x.reshape(-1, len(bias)).sum(0)


def _geglu_backward(
    grad: Tensor, gate: Tensor, value: Tensor, approximate: str
) -> tuple[Tensor, Tensor]:
    to_gate = ops.gelu_backward.default(grad * value, gate, approximate)
    return to_gate, grad * ops.gelu.default(gate, approximate)


def _composed_where_recorded(
    name: str, composed: Callable[..., tuple[Tensor, Tensor]]
) -> Callable[..., tuple[Tensor, Tensor]]:
    operator = getattr(ops, name).default

    def autograd(
        one: Tensor, two: Tensor, three: Tensor, approximate: str = "none"
    ) -> tuple[Tensor, Tensor]:
        if records(one, two, three):
            return composed(one, two, three, approximate)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(one, two, three, approximate)  # type: ignore[no-any-return]

    return autograd


def _autograd_gelu_(x: Tensor, approximate: str = "none") -> None:
    if records(x):
        raise RuntimeError(
            "gelu_: x requires a gradient, which is computed from the values that would be "
            "overwritten; use gelu(x), or torch.no_grad()"
        )
    with torch._C._AutoDispatchBelowAutograd():
        ops.gelu_.default(x, approximate)
    torch.autograd.graph.increment_version(x)


# The fake kernels.


def _like_first(first: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(first)


def _like_second(first: Tensor, second: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(second)


def _fake_double_backward(
    grad_grad: Tensor, grad: Tensor, x: Tensor, approximate: str = "none"
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def _fake_bias_gelu(x: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    return x.new_empty(x.shape)


def _fake_bias_gelu_backward(
    grad: Tensor, x: Tensor, bias: Tensor, approximate: str = "none"
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bias.new_empty(bias.shape)


def _fake_geglu_backward(
    grad: Tensor, gate: Tensor, value: Tensor, approximate: str = "none"
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gate), torch.empty_like(gate)


def _fake_gelu_8bit(x: Tensor, approximate: str = "none") -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((x.numel(),), dtype=torch.uint8)


def _fake_gelu_1bit(x: Tensor, approximate: str = "none") -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(((x.numel() + 7) // 8,), dtype=torch.uint8)


def _contiguous_like_first(first: Tensor, *rest: Any) -> Tensor:
    return first.new_empty(first.shape)


def _nothing(x: Tensor, approximate: str = "none") -> None:
    return None


FAKES: dict[str, Callable[..., Any]] = {
    "gelu": _like_first,
    "gelu_": _nothing,
    "gelu_backward": _like_second,
    "gelu_double_backward": _fake_double_backward,
    "bias_gelu": _fake_bias_gelu,
    "bias_gelu_backward": _fake_bias_gelu_backward,
    "geglu": _like_first,
    "geglu_backward": _fake_geglu_backward,
    "gelu_8bit": _fake_gelu_8bit,
    "gelu_8bit_backward": _contiguous_like_first,
    "gelu_1bit": _fake_gelu_1bit,
    "gelu_1bit_backward": _contiguous_like_first,
}
COMPOSED: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "gelu_double_backward": _double_backward,
    "bias_gelu_backward": _bias_gelu_backward,
    "geglu_backward": _geglu_backward,
}

if LOADED:
    for _name, _fake in FAKES.items():
        torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake)
    # Kept: the registrations end with this object.
    _library = torch.library.Library(NAMESPACE, "IMPL")  # type: ignore[no-untyped-call]
    for _name, _composed in COMPOSED.items():
        _function = _composed_where_recorded(_name, _composed)
        _library.impl(_name, _function, "Autograd")  # type: ignore[no-untyped-call]
    _library.impl("gelu_", _autograd_gelu_, "Autograd")  # type: ignore[no-untyped-call]
