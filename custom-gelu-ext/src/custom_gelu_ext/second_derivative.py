"""gelu''(x) as differentiable torch operations: what a double backward multiplies by.

The kernel of gelu_double_backward has it built in. This one serves where that result is to be
differentiated in its turn, and torch.func and forward mode: made of torch's operations, it can be,
any number of times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Beyond it gelu'' is 0 in float64; cutting x there keeps Inf * 0 and overflow out.
_LIMIT = 40.0


def second_derivative(x: Tensor, approximate: str) -> Tensor:
    """Return gelu''(x), elementwise, in x's dtype and at least float32; NaN where x is NaN."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    wide = wide.clamp(-_LIMIT, _LIMIT)
    return _tanh(wide) if approximate == "tanh" else _exact(wide)


def _exact(x: Tensor) -> Tensor:
    # gelu' = Phi + x phi, Phi' = phi, phi' = -x phi.
    square = x * x
    return (2.0 - square) * torch.exp(-0.5 * square) / math.sqrt(2.0 * math.pi)


def _tanh(x: Tensor) -> Tensor:
    # gelu = x s(w) with s the sigmoid, w = c1 x + c3 x^3; s' = s (1 - s), s'' = s' (1 - 2s).
    c1 = 2.0 * math.sqrt(2.0 / math.pi)
    c3 = 0.044715 * c1
    w = x * (c1 + c3 * x * x)
    w1 = c1 + 3.0 * c3 * x * x
    w2 = 6.0 * c3 * x
    s, complement = torch.sigmoid(w), torch.sigmoid(-w)
    s1 = s * complement
    return s1 * (2.0 * w1 + x * ((complement - s) * w1 * w1 + w2))
