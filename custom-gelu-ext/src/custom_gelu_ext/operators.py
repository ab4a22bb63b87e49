"""What torch must know of our two operators beyond their kernels: shapes, derivatives, batching.

The operators are declared in ``csrc/binding.cpp``:

    gelu(x, approximate)                  -> gelu(x)
    gelu_backward(grad, x, approximate)   -> grad * gelu'(x)

A call of one goes to torch's dispatcher, which looks at the tensor and picks a function: first the
autograd one registered at the end of this file (it records what backward will need and calls the
operator again, below autograd), then the C++ or CUDA kernel. For backward alone
``torch.library.register_autograd`` would do, but forward mode then silently gives zeros; with the
``autograd.Function``s here it works, and so do the transforms of ``torch.func``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from custom_gelu_ext.extension import LOADED
from custom_gelu_ext.second_derivative import second_derivative

_ops = torch.ops.custom_gelu_ext


def forward(x: Tensor, approximate: str = "none") -> Tensor:
    """Return gelu(x)."""
    if _in_function_transform():
        return _Gelu.apply(x, approximate)  # type: ignore[no-any-return, no-untyped-call]
    return _ops.gelu.default(x, approximate)  # type: ignore[no-any-return]


def backward(grad: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    """Return grad * gelu'(x); shapes, dtypes and devices of both are equal."""
    if _in_function_transform():
        return _GeluBackward.apply(grad, x, approximate)  # type: ignore[no-any-return, no-untyped-call]
    return _ops.gelu_backward.default(grad, x, approximate)  # type: ignore[no-any-return]


def _in_function_transform() -> bool:
    # torch.func's grad, jvp and vmap take an autograd.Function apart themselves, but only where
    # they meet it before the dispatcher does. torch.compile traces the operators.
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


class _Gelu(Function):
    @staticmethod
    def forward(x: Tensor, approximate: str) -> Tensor:
        if _in_function_transform():
            return forward(x, approximate)  # for the next transform further out
        with torch._C._AutoDispatchBelowAutograd():
            return forward(x, approximate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        x, ctx.approximate = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return backward(grad, x, ctx.approximate), None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, _: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return backward(x_tangent, x, ctx.approximate)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, approximate: str = "none"
    ) -> tuple[Tensor, int | None]:
        return forward(x, approximate), in_dims[0]  # one dimension more does not matter


class _GeluBackward(Function):
    @staticmethod
    def forward(grad: Tensor, x: Tensor, approximate: str) -> Tensor:
        if _in_function_transform():
            return backward(grad, x, approximate)
        with torch._C._AutoDispatchBelowAutograd():
            return backward(grad, x, approximate)

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
            to_grad = backward(grad_of_output, x, ctx.approximate)
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
        return backward(grad_tangent, x, ctx.approximate) + from_x

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        grad: Tensor,
        x: Tensor,
        approximate: str = "none",
    ) -> tuple[Tensor, int]:
        def batched(tensor: Tensor, dim: int | None) -> Tensor:
            if dim is None:
                return tensor.expand(info.batch_size, *tensor.shape)
            return tensor.movedim(dim, 0)

        return backward(batched(grad, in_dims[0]), batched(x, in_dims[1]), approximate), 0


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


# What torch.compile traces with: shapes, dtypes and strides, no values.


def _fake_gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return torch.empty_like(x)


def _fake_gelu_backward(grad: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    return torch.empty_like(x)


# The autograd kernels.


def _nothing_to_record(*tensors: Tensor) -> bool:
    # An autograd.Function costs more than a small GELU: where no derivative is asked for, skip it.
    return (
        not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and torch.autograd.forward_ad._current_level < 0
        and not _in_function_transform()
    )


def _autograd_gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if _nothing_to_record(x):
        return _Gelu.forward(x, approximate)
    return _Gelu.apply(x, approximate)  # type: ignore[no-any-return, no-untyped-call]


def _autograd_gelu_backward(grad: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    if _nothing_to_record(grad, x):
        return _GeluBackward.forward(grad, x, approximate)
    return _GeluBackward.apply(grad, x, approximate)  # type: ignore[no-any-return, no-untyped-call]


if LOADED:
    torch.library.register_fake("custom_gelu_ext::gelu", _fake_gelu)
    torch.library.register_fake("custom_gelu_ext::gelu_backward", _fake_gelu_backward)
    torch.library.register_vmap("custom_gelu_ext::gelu", _Gelu.vmap)
    torch.library.register_vmap("custom_gelu_ext::gelu_backward", _GeluBackward.vmap)
    # Kept: the registrations end with this object.
    _library = torch.library.Library("custom_gelu_ext", "IMPL")  # type: ignore[no-untyped-call]
    _library.impl("gelu", _autograd_gelu, "Autograd")  # type: ignore[no-untyped-call]
    _library.impl("gelu_backward", _autograd_gelu_backward, "Autograd")  # type: ignore[no-untyped-call]
