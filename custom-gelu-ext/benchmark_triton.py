"""GEGLU in Triton, as one would write it: a peer that benchmark.py measures against.

erf(a / sqrt 2) is Triton's own; a program takes 1024 elements, the usual choice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _forward(gate, value, out, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    a = tl.load(gate + at, mask=mask).to(tl.float32)
    b = tl.load(value + at, mask=mask).to(tl.float32)
    phi = 0.5 * (1.0 + tl.math.erf(a * 0.7071067811865476))
    tl.store(out + at, a * phi * b, mask=mask)


@triton.jit
def _backward(grad, gate, value, to_gate, to_value, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    g = tl.load(grad + at, mask=mask).to(tl.float32)
    a = tl.load(gate + at, mask=mask).to(tl.float32)
    b = tl.load(value + at, mask=mask).to(tl.float32)
    phi = 0.5 * (1.0 + tl.math.erf(a * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * a * a)
    tl.store(to_gate + at, g * b * (phi + a * density), mask=mask)
    tl.store(to_value + at, g * a * phi, mask=mask)


def geglu_forward(gate: Tensor, value: Tensor) -> Tensor:
    """Return gelu(gate) * value."""
    out = torch.empty_like(gate)
    n = gate.numel()
    _forward[(triton.cdiv(n, BLOCK),)](gate, value, out, n, BLOCK=BLOCK)
    return out


def geglu_backward(
    grad: Tensor, gate: Tensor, value: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and value; ``kept`` is not needed."""
    to_gate, to_value = torch.empty_like(gate), torch.empty_like(gate)
    n = gate.numel()
    _backward[(triton.cdiv(n, BLOCK),)](grad, gate, value, to_gate, to_value, n, BLOCK=BLOCK)
    return to_gate, to_value
