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
then the C++ or CUDA kernel; or, where torch.compile traces, the one in ``fake_kernels.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from custom_gelu_ext.extension import LOADED
from custom_gelu_ext.fake_kernels import FAKES
from custom_gelu_ext.second_derivative import second_derivative

NAMESPACE = "custom_gelu_ext"
ops = torch.ops.custom_gelu_ext


def as_rows(x: Tensor) -> Tensor:
    """Return ``x`` with all dimensions but the last as one; reshape(-1, C) fails where C is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


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
    return grad_x, as_rows(grad_x).sum(0)


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


# What overwrites must say so, that a backward which needs the old values finds out. Autograd is not
# asked under inference_mode, nor for tensors made there; ADInplaceOrView is, unless both hold.


def _autograd_gelu_(keys: torch._C.DispatchKeySet, x: Tensor, approximate: str = "none") -> None:
    if records(x):
        raise RuntimeError(
            "gelu_: x requires a gradient, which is computed from the values that would be "
            "overwritten; use gelu(x), or torch.no_grad()"
        )
    _in_place_gelu_(keys, x, approximate)


def _in_place_gelu_(keys: torch._C.DispatchKeySet, x: Tensor, approximate: str = "none") -> None:
    if x.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            "gelu_: x was made in inference_mode and has no version to count, outside of it; "
            "use gelu(x), or x.clone() first"
        )
    torch.autograd.graph.increment_version(x)
    below = keys & torch._C._after_ADInplaceOrView_keyset
    ops.gelu_.default.redispatch(below, x, approximate)


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
    for _key, _in_place in (("Autograd", _autograd_gelu_), ("ADInplaceOrView", _in_place_gelu_)):
        _library.impl("gelu_", _in_place, _key, with_keyset=True)  # type: ignore[no-untyped-call]
