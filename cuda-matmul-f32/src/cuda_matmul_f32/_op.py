"""What torch must know of the op ``cuda_matmul_f32::matmul`` besides its kernels.

The fake kernel gives torch.compile the result's shape without computing it. The gradients are
products of the same op, so they run on the same rung and can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from cuda_matmul_f32._kernels import build_info


def op(a: Tensor, b: Tensor, kernel: str) -> Tensor:
    """Multiply a [M, K] by b [K, N] with the rung called ``kernel`` of their device's ladder."""
    return cast(Tensor, torch.ops.cuda_matmul_f32.matmul(a, b, kernel))


# torch._check and not `if`, so that a size known only at run time becomes a run-time check.
_require: Callable[[bool, Callable[[], str]], None] = torch._check


def _fake(a: Tensor, b: Tensor, kernel: str) -> Tensor:
    _require(a.dim() == b.dim() and a.dim() in (2, 3), lambda: "matmul: a and b must be 2-D")
    _require(
        a.size(-1) == b.size(-2), lambda: f"matmul: inner sizes differ, {a.shape} times {b.shape}"
    )
    return a.new_empty((*a.shape[:-1], b.size(-1)))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    a, b, kernel = inputs
    # Each input is needed for the other one's gradient only.
    ctx.save_for_backward(
        a if ctx.needs_input_grad[1] else None, b if ctx.needs_input_grad[0] else None
    )
    ctx.kernel = kernel


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    a, b = ctx.saved_tensors
    # C = A B, so dA = dC B^T and dB = A^T dC. The transposes are views: kernels read any strides.
    grad_a = op(grad, b.mT, ctx.kernel) if ctx.needs_input_grad[0] else None
    grad_b = op(a.mT, grad, ctx.kernel) if ctx.needs_input_grad[1] else None
    return grad_a, grad_b, None


if build_info.module is not None:
    torch.library.register_fake("cuda_matmul_f32::matmul", _fake)
    torch.library.register_autograd(
        "cuda_matmul_f32::matmul", _backward, setup_context=cast(Any, _save)
    )
