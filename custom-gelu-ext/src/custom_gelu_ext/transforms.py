"""GELU under ``torch.func`` and forward mode: the same operators as ``autograd.Function``s.

The C++ autograd functions (``csrc/torch/autograd.cpp``) serve ``backward()``. The transforms of
``torch.func`` (grad, jvp, vmap) and dual numbers want to take a function apart themselves, and they
can where it is an ``autograd.Function`` in Python. ``gelu`` and ``gelu_backward`` here choose the
way; they are what every other file calls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from custom_gelu_ext import _ahead, autograd_python
from custom_gelu_ext.extension import LOADED
from custom_gelu_ext.operators import NAMESPACE, ops
from custom_gelu_ext.second_derivative import second_derivative

_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Return gelu(x); x is a tensor that the kernels take."""
    if transformed():
        return _Gelu.apply(x, approximate)  # type: ignore[no-any-return, no-untyped-call]
    return ops.gelu.default(x, approximate)  # type: ignore[no-any-return]


def gelu_backward(grad: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    """Return grad * gelu'(x); shapes, dtypes and devices of both are equal."""
    if transformed():
        return _GeluBackward.apply(grad, x, approximate)  # type: ignore[no-any-return, no-untyped-call]
    return ops.gelu_backward.default(grad, x, approximate)  # type: ignore[no-any-return]


def transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward mode is active; never in torch.compile."""
    return not _is_compiling() and (_transforms_active() or forward_ad._current_level >= 0)


class _Gelu(Function):
    @staticmethod
    def forward(x: Tensor, approximate: str) -> Tensor:
        if _transforms_active():
            return gelu(x, approximate)  # for the next transform further out
        with torch._C._AutoDispatchBelowAutograd():
            return ops.gelu.default(x, approximate)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        x, ctx.approximate = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gelu_backward(grad, x, ctx.approximate), None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, _: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return gelu_backward(x_tangent, x, ctx.approximate)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, approximate: str = "none"
    ) -> tuple[Tensor, int | None]:
        return gelu(x, approximate), in_dims[0]  # one dimension more does not matter


class _GeluBackward(Function):
    @staticmethod
    def forward(grad: Tensor, x: Tensor, approximate: str) -> Tensor:
        if _transforms_active():
            return gelu_backward(grad, x, approximate)
        with torch._C._AutoDispatchBelowAutograd():
            return ops.gelu_backward.default(grad, x, approximate)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        grad, x, ctx.approximate = inputs
        ctx.save_for_backward(grad, x)
        ctx.save_for_forward(grad, x)

    @staticmethod
    def backward(ctx: Any, grad_of_output: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        # The output is grad * gelu'(x): linear in grad, and its derivative in x is gelu''.
        grad, x = ctx.saved_tensors
        to_grad = to_x = None
        if ctx.needs_input_grad[0]:
            to_grad = gelu_backward(grad_of_output, x, ctx.approximate)
        if ctx.needs_input_grad[1]:
            curvature = second_derivative(x, ctx.approximate)
            to_x = (curvature * grad * grad_of_output).to(x.dtype)
        return to_grad, to_x, None

    @staticmethod
    def jvp(ctx: Any, grad_tangent: Tensor, x_tangent: Tensor, _: None) -> Tensor:
        grad, x = ctx.saved_tensors
        guarded: Tensor = _NoForwardMode.apply(x)  # type: ignore[no-untyped-call]
        curvature = second_derivative(guarded, ctx.approximate)
        from_x: Tensor = (curvature * grad * x_tangent).to(x.dtype)
        return gelu_backward(grad_tangent, x, ctx.approximate) + from_x

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        grad: Tensor,
        x: Tensor,
        approximate: str = "none",
    ) -> tuple[Tensor, int]:
        grad, x = (_batched(info, t, dim) for t, dim in ((grad, in_dims[0]), (x, in_dims[1])))
        return gelu_backward(grad, x, approximate), 0


class _NoForwardMode(Function):
    """The identity, refusing forward mode: torch switches it off for plain operations inside jvp.

    Without it a third derivative by forward over forward mode would silently be 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        raise NotImplementedError(
            "gelu: forward mode twice over a derivative is not supported; "
            "use torch.func.jacrev (reverse mode) for one of the two"
        )


# vmap over an operator that something else called: the backward of one recorded outside of vmap.


def _batched(info: Any, tensor: Tensor, dim: int | None) -> Tensor:
    if dim is None:
        return tensor.expand(info.batch_size, *tensor.shape)
    return tensor.movedim(dim, 0)


def _vmap_bias_gelu_backward(
    info: Any,
    in_dims: tuple[int | None, ...],
    grad: Tensor,
    x: Tensor,
    bias: Tensor,
    approximate: str = "none",
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    grad, x, bias = (
        _batched(info, t, dim) for t, dim in zip((grad, x, bias), in_dims, strict=False)
    )
    shifted = x + bias.reshape(len(bias), *([1] * (x.dim() - 2)), bias.shape[-1])
    grad_x = gelu_backward(grad, shifted, approximate)
    return (grad_x, grad_x.flatten(1, -2).sum(1) if x.dim() > 2 else grad_x), (0, 0)


def _vmap_geglu_backward(
    info: Any,
    in_dims: tuple[int | None, ...],
    grad: Tensor,
    gate: Tensor,
    value: Tensor,
    approximate: str = "none",
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    grad, gate, value = (
        _batched(info, t, dim) for t, dim in zip((grad, gate, value), in_dims, strict=False)
    )
    return ops.geglu_backward.default(grad, gate, value, approximate), (0, 0)


if LOADED:
    _rules: dict[str, Any] = {
        "gelu": _Gelu.vmap,
        "gelu_backward": _GeluBackward.vmap,
        "bias_gelu_backward": _vmap_bias_gelu_backward,
        "geglu_backward": _vmap_geglu_backward,
    }
    for _name, _rule in _rules.items():
        torch.library.register_vmap(f"{NAMESPACE}::{_name}", _rule)
    if _ahead.kind() == "stable":
        autograd_python.register()
