"""What stands between a layer's matrix products: norms, rotary positions, the gated activation.

Two implementations of one interface: torch's operators, anywhere; and kernels of ours, one call
each, on a CPU or a GPU.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mini_llm_server import kernels


class Elementwise(Protocol):
    """N tokens, E hidden size, D head size, F feed-forward size."""

    def add_norm(
        self, x_NE: Tensor, delta_NE: Tensor | None, weight_E: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return x + delta, for which x's memory may be used, and its RMS norm times weight."""

    def rotate(self, x_NHD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
        """Turn the pairs (d, d + D / 2), as Llama's files have them, by each position's angles.

        `sin` carries the sign: its first half is negative. x's memory may be used.
        """

    def silu_mul(self, gate_up_NF: Tensor) -> Tensor:
        """Return silu(gate) * up [N, F] of [N, 2 F]."""


class TorchElementwise:
    """By torch's operators."""

    def add_norm(
        self, x_NE: Tensor, delta_NE: Tensor | None, weight_E: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See `Elementwise`."""
        x_NE = x_NE if delta_NE is None else x_NE + delta_NE
        return x_NE, rms_norm(x_NE, weight_E, eps)

    def rotate(self, x_NHD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
        """See `Elementwise`."""
        swapped = x_NHD.roll(x_NHD.shape[-1] // 2, dims=-1)
        return torch.addcmul(x_NHD * cos_N1D, swapped, sin_N1D)

    def silu_mul(self, gate_up_NF: Tensor) -> Tensor:
        """See `Elementwise`."""
        gate, up = gate_up_NF.chunk(2, dim=-1)
        return F.silu(gate) * up


class KernelElementwise:
    """By csrc/elementwise.cpp or csrc/cuda/elementwise.cu. Needs `kernels.have`."""

    def add_norm(
        self, x_NE: Tensor, delta_NE: Tensor | None, weight_E: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See `Elementwise`."""
        return x_NE, torch.ops.mini_llm_server.add_rms_norm_(x_NE, delta_NE, weight_E, eps)

    def rotate(self, x_NHD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
        """See `Elementwise`."""
        torch.ops.mini_llm_server.rotate_(x_NHD, cos_N1D, sin_N1D)
        return x_NHD

    def silu_mul(self, gate_up_NF: Tensor) -> Tensor:
        """See `Elementwise`."""
        out: Tensor = torch.ops.mini_llm_server.silu_mul(gate_up_NF)
        return out


def make_elementwise(dtype: torch.dtype, device: torch.device) -> Elementwise:
    """Return our kernels where the device has some, else torch's operators."""
    return KernelElementwise() if kernels.have(device, dtype) else TorchElementwise()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm; in at least float32, where the mean of squares has to be exact."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (wide * scale).to(x.dtype) * weight
