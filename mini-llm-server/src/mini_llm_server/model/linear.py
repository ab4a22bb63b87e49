"""A matrix product with a fixed weight, in the layout that the device multiplies fastest."""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """y = x @ weight.T + bias for a weight [out, in] and a bias [out] that never change.

    On an x86 CPU in float32 the weight is repacked once into oneDNN's blocked layout (what
    torch.compile's weight freezing does as well): skinny products, as decoding has, are then up
    to twice as fast as the BLAS that F.linear calls. Elsewhere it is F.linear.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.is_packed = (
            weight.device.type == "cpu"
            and weight.dtype == torch.float32
            and platform.machine() in ("x86_64", "AMD64")
            and torch._C._has_mkldnn
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # not a public interface of torch
        )
        if self.is_packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Return y [..., out] of x [..., in]."""
        if not self.is_packed:
            return F.linear(x, self.weight, self.bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y
