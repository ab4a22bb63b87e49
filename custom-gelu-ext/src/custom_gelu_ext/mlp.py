"""Linear, GELU, Linear as one function that keeps less for backward than the three would.

torch keeps the block's input, GELU's input h and its result y, which are the wide ones. Of h only
gelu'(h) is needed, and there are cheaper ways to it:

    save         kept of h and y (a 16-bit type)      gelu'(h) in backward
    "input"      h, y         4 bytes an element      from h; what torch keeps
    "recompute"  h            2                       from h; y is computed again
    "8bit"       y, a byte    3                       from the byte, within 0.0025
    "1bit"       y, a bit     2.125                   from y and the side of GELU's minimum

"recompute" is exact and costs one more pass over h. "1bit" and "8bit" need no pass more, and change
gradients slightly; the README has the measured errors and what they do to a training.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function

from custom_gelu_ext import functional, transforms
from custom_gelu_ext.checks import check_approximate, check_tensor
from custom_gelu_ext.extension import has_kernel
from custom_gelu_ext.operators import as_rows, ops

SAVE = ("input", "recompute", "8bit", "1bit")
CODES = ("8bit", "1bit")


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    approximate: str = "none",
    save: str = "recompute",
) -> Tensor:
    """Return ``linear(gelu(linear(x, weight1, bias1)), weight2, bias2)``.

    Args:
        x: [..., D].
        weight1, bias1: [H, D], and [H] or None.
        weight2, bias2: [D_out, H], and [D_out] or None.
        approximate: see :func:`custom_gelu_ext.gelu`.
        save: what is kept for backward: "input", "recompute", "8bit" or "1bit".

    Returns:
        [..., D_out]. Differentiable any number of times with "input" and "recompute", once with
        "8bit" and "1bit". Under autocast computed in autocast's dtype; float64 stays as it is.

    Raises:
        TypeError: a dtype that GELU has no kernel for.
        ValueError: ``save`` or ``approximate`` is unknown.
        RuntimeError: in backward with ``create_graph``, of "8bit" and "1bit".
    """
    tensors = (x, weight1, bias1, weight2, bias2)
    if has_torch_function(tensors):
        return handle_torch_function(mlp, tensors, *tensors, approximate, save)
    check_tensor("mlp", "x", x)
    check_approximate(approximate)
    check_save(save)
    if (dtype := functional.autocast_dtype(x)) is not None:
        x, weight1, weight2 = (_cast(each, dtype) for each in (x, weight1, weight2))
        bias1 = None if bias1 is None else _cast(bias1, dtype)
        bias2 = None if bias2 is None else _cast(bias2, dtype)
    if not has_kernel(x) or transforms.transformed():
        hidden = functional.gelu(F.linear(x, weight1, bias1), approximate)
        return F.linear(hidden, weight2, bias2)
    result: Tensor = _Mlp.apply(x, weight1, bias1, weight2, bias2, approximate, save)  # type: ignore[no-untyped-call]
    return result


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(dtype)  # as autocast does


def check_save(save: str) -> None:
    """Raise ValueError unless ``save`` names one of the four ways."""
    if save not in SAVE:
        raise ValueError(f"mlp: save must be one of {', '.join(SAVE)}, got {save!r}")


class _Mlp(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor | None,
        weight2: Tensor,
        bias2: Tensor | None,
        approximate: str,
        save: str,
    ) -> Tensor:
        ctx.approximate, ctx.save = approximate, save
        kept: tuple[Tensor, ...]
        if save in CODES:
            encode = ops.gelu_8bit if save == "8bit" else ops.gelu_1bit
            y, code = encode.default(F.linear(x, weight1, bias1), approximate)
            kept = (y, code)
        else:
            h = F.linear(x, weight1)  # the bias is added by the next kernel, and its gradient made
            y = _gelu(h, bias1, approximate)
            kept = (h, y) if save == "input" else (h,)
        ctx.save_for_backward(x, weight1, bias1, weight2, *kept)
        return F.linear(y, weight2, bias2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, bias1, weight2, *kept = ctx.saved_tensors
        wants = ctx.needs_input_grad
        if torch.is_grad_enabled():  # by create_graph: this backward is to be differentiated itself
            if ctx.save in CODES:
                raise RuntimeError(
                    f"mlp: with save={ctx.save!r} it can be differentiated once, but create_graph "
                    "is set; use save='recompute'"
                )
            kept = [F.linear(x, weight1)]  # the same h, but autograd knows where it comes from
        grad_x = grad_weight1 = grad_bias1 = None
        if any(wants[:3]):
            grad_h, grad_bias1 = _gelu_backward(ctx, grad @ weight2, bias1, kept)
            grad_x = grad_h @ weight1 if wants[0] else None
            grad_weight1 = as_rows(grad_h).t() @ as_rows(x) if wants[1] else None
        return (
            grad_x,
            grad_weight1,
            grad_bias1,
            as_rows(grad).t() @ as_rows(_value(ctx, bias1, kept)) if wants[3] else None,
            as_rows(grad).sum(0) if wants[4] else None,
            None,
            None,
        )


def _gelu(h: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    if bias is None:
        return ops.gelu.default(h, approximate)  # type: ignore[no-any-return]
    return ops.bias_gelu.default(h, bias, approximate)  # type: ignore[no-any-return]


def _value(ctx: Any, bias: Tensor | None, kept: list[Tensor]) -> Tensor:
    if ctx.save in CODES:
        return kept[0]
    return kept[1] if len(kept) > 1 else _gelu(kept[0], bias, ctx.approximate)


def _gelu_backward(
    ctx: Any, grad: Tensor, bias: Tensor | None, kept: list[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of h and of the bias, if there is one, from that of y."""
    if ctx.save not in CODES and bias is not None:
        return ops.bias_gelu_backward.default(grad, kept[0], bias, ctx.approximate)  # type: ignore[no-any-return]
    if ctx.save == "8bit":
        grad_h = ops.gelu_8bit_backward.default(grad, kept[1])
    elif ctx.save == "1bit":
        grad_h = ops.gelu_1bit_backward.default(grad, *kept, ctx.approximate)
    else:
        grad_h = ops.gelu_backward.default(grad, kept[0], ctx.approximate)
    return grad_h, as_rows(grad_h).sum(0) if ctx.needs_input_grad[2] else None
