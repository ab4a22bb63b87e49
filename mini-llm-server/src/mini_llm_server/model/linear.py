"""A matrix product with a fixed weight, by what is fastest on this machine for a step's size."""

from __future__ import annotations

import platform
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

# Beyond this many rows a product is bound by arithmetic, and torch's BLAS is as good.
SKINNY_ROWS = 96


class Way(Enum):
    """How a weight is multiplied."""

    SKINNY = "our kernel for few rows, torch for many"  # csrc/skinny_linear.cpp
    PACKED = "oneDNN, from a repacked copy"
    TORCH = "torch"


class Linear:
    """y = x @ weight.T + bias for a weight [out, in] and a bias [out] that never change.

    Decoding multiplies few rows, and torch's BLAS is up to half as fast for these as it could be.
    A CPU with AVX-512 takes a kernel of ours in float32. Other x86 CPUs, and those that multiply
    bfloat16, repack the weight once into oneDNN's blocked layout, as torch.compile's weight
    freezing does. Elsewhere it is F.linear.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.way = _way(weight)
        if self.way is Way.PACKED:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        if self.way is Way.SKINNY:
            weight = weight.contiguous()
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Return y [N, out] of x [N, in]."""
        if self.way is Way.PACKED:
            packed: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self.weight, self.bias, "none", [], ""
            )
            return packed
        if self.way is Way.SKINNY and len(x) <= SKINNY_ROWS:
            y: Tensor = torch.ops.mini_llm_server.skinny_linear(x.contiguous(), self.weight)
            return y if self.bias is None else y + self.bias
        return F.linear(x, self.weight, self.bias)


def _way(weight: Tensor) -> Way:
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    if weight.device.type != "cpu" or not is_x86:
        return Way.TORCH
    rows, columns = weight.shape
    if (
        weight.dtype == torch.float32
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and rows % 4 == 0
        and columns % 16 == 0
    ):
        from mini_llm_server import extension

        if extension.is_available:
            return Way.SKINNY
    # Not a public face of torch, so it may be gone one day.
    if torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_bfloat16):
            return Way.PACKED
    return Way.TORCH
