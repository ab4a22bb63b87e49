"""A matrix product with a fixed weight, in the layout that the device multiplies fastest."""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """y = x @ weight.T + bias for a weight [out, in] and a bias [out] that never change.

    On an x86 CPU the weight is repacked once into oneDNN's blocked layout (what torch.compile's
    weight freezing does as well): skinny products, as decoding has, are then up to twice as fast
    as the BLAS that F.linear calls. Elsewhere it is F.linear.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.is_packed = weight.device.type == "cpu" and _packs(weight.dtype)
        if self.is_packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Return y [N, out] of x [N, in]."""
        if not self.is_packed:
            return F.linear(x, self.weight, self.bias)
        # A single row has a kernel of its own, which may add up in another order: as two rows, it
        # gets the bits that it gets in any batch.
        rows = len(x)
        x = x.expand(2, -1) if rows == 1 else x
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y[:rows]


def _packs(dtype: torch.dtype) -> bool:
    """Say whether this CPU's oneDNN has packed weights of a type; not a public face of torch."""
    if (
        platform.machine() not in ("x86_64", "AMD64")
        or not torch._C._has_mkldnn
        or not hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
