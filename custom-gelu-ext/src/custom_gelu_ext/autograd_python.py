"""Autograd for the stable-ABI build, whose library has none: registered from Python.

torch.func and forward mode do not come here: transforms.py serves them before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from custom_gelu_ext.operators import NAMESPACE, ops


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.approximate = inputs
    ctx.save_for_backward(*tensors)


def _backward_with(operator: Any) -> Any:
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        found = operator(grad, *ctx.saved_tensors, ctx.approximate)
        return (*(found if isinstance(found, tuple) else (found,)), None)

    return backward


def register() -> None:
    """Tell autograd how the four differentiable operators are differentiated."""
    for name, operator in {
        "gelu": ops.gelu_backward.default,
        "gelu_backward": ops.gelu_double_backward.default,
        "bias_gelu": ops.bias_gelu_backward.default,
        "geglu": ops.geglu_backward.default,
    }.items():
        torch.library.register_autograd(
            f"{NAMESPACE}::{name}", _backward_with(operator), setup_context=_keep
        )
