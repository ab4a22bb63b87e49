"""Every kernel on small ragged shapes: quick enough to run under compute-sanitizer.

compute-sanitizer --tool memcheck python -m pytest -m gpu -k sanitizer
"""

from __future__ import annotations

import pytest
import torch
from custom_gelu_ext import gelu


@pytest.mark.gpu
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "unaligned"])
def test_sanitizer_every_kernel(dtype, approximate, offset):
    tile = 256 * 2 * (16 // dtype.itemsize)  # a block's vector tile
    for n in (1, 67, 255, tile - 1, tile, tile + 1, 2 * tile + 5):
        # Memory of exactly this size, so that one element too many is out of bounds.
        x = torch.randn(n + offset, device="cuda").to(dtype)[offset:]
        grad = torch.randn(n + offset, device="cuda").to(dtype)[offset:]
        y = gelu(x, approximate)
        dx = torch.ops.custom_gelu_ext.gelu_backward(grad, x, approximate)
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(y.cpu(), gelu(x.cpu(), approximate), rtol=tolerance, atol=1e-7)
        expected = torch.ops.custom_gelu_ext.gelu_backward(grad.cpu(), x.cpu(), approximate)
        torch.testing.assert_close(dx.cpu(), expected, rtol=tolerance, atol=tolerance)
