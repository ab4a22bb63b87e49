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
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from custom_gelu_ext import functional, transforms
from custom_gelu_ext.checks import check_approximate, check_tensor
from custom_gelu_ext.extension import has_kernel
from custom_gelu_ext.operators import ops

SAVE = ("input", "recompute", "8bit", "1bit")


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    approximate: str = "none",
    save: str = "recompute",
) -> Tensor:
    """Return ``linear(gelu(linear(x, weight1, bias1)), weight2, bias2)``.

    Args:
        x: [..., D].
        weight1, bias1: [H, D] and [H].
        weight2, bias2: [D_out, H] and [D_out].
        approximate: see :func:`custom_gelu_ext.gelu`.
        save: what is kept for backward: "input", "recompute", "8bit" or "1bit".

    Returns:
        [..., D_out]. Differentiable once. Under autocast computed in autocast's dtype.

    Raises:
        TypeError: a dtype that GELU has no kernel for.
        ValueError: ``save`` or ``approximate`` is unknown.
    """
    tensors = (x, weight1, bias1, weight2, bias2)
    if has_torch_function(tensors):
        return handle_torch_function(mlp, tensors, *tensors, approximate, save)
    check_tensor("mlp", "x", x)
    check_approximate(approximate)
    check_save(save)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight1, bias1, weight2, bias2 = (
            each.to(dtype) for each in (x, weight1, bias1, weight2, bias2)
        )
    if not has_kernel(x) or transforms.transformed():
        hidden = functional.gelu(F.linear(x, weight1, bias1), approximate)
        return F.linear(hidden, weight2, bias2)
    result: Tensor = _Mlp.apply(x, weight1, bias1, weight2, bias2, approximate, save)  # type: ignore[no-untyped-call]
    return result


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
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        approximate: str,
        save: str,
    ) -> Tensor:
        ctx.approximate, ctx.save = approximate, save
        kept: tuple[Tensor, ...]
        if save in ("8bit", "1bit"):
            encode = ops.gelu_8bit if save == "8bit" else ops.gelu_1bit
            y, code = encode.default(F.linear(x, weight1, bias1), approximate)
            kept = (y, code)
        else:
            h = F.linear(x, weight1)  # the bias is added by the next kernel, and its gradient made
            y = ops.bias_gelu.default(h, bias1, approximate)
            kept = (h, y) if save == "input" else (h,)
        ctx.save_for_backward(x, weight1, bias1, weight2, *kept)
        return F.linear(y, weight2, bias2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, bias1, weight2, *kept = ctx.saved_tensors
        wants = ctx.needs_input_grad
        grad_y = grad @ weight2
        if ctx.save in ("8bit", "1bit"):
            y, code = kept
            grad_h = (
                ops.gelu_8bit_backward.default(grad_y, code)
                if ctx.save == "8bit"
                else ops.gelu_1bit_backward.default(grad_y, y, code, ctx.approximate)
            )
            grad_bias1 = _rows(grad_h).sum(0) if wants[2] else None
        else:
            h = kept[0]
            y = kept[1] if len(kept) > 1 else ops.bias_gelu.default(h, bias1, ctx.approximate)
            grad_h, grad_bias1 = ops.bias_gelu_backward.default(grad_y, h, bias1, ctx.approximate)
        del grad_y
        return (
            grad_h @ weight1 if wants[0] else None,
            _rows(grad_h).t() @ _rows(x) if wants[1] else None,
            grad_bias1,
            _rows(grad).t() @ _rows(y) if wants[3] else None,
            _rows(grad).sum(0) if wants[4] else None,
            None,
            None,
        )


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
