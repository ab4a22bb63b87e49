"""Every kernel on small ragged shapes: quick enough to run under compute-sanitizer.

    export PYTORCH_NO_CUDA_MEMORY_CACHING=1  # each tensor is an allocation, whose end is known
    compute-sanitizer --tool memcheck python -m pytest -m gpu -k sanitizer
    compute-sanitizer --tool racecheck python -m pytest -m gpu -k sanitizer

Each result is compared with the CPU's.
"""

from __future__ import annotations

import pytest
import torch
from custom_gelu_ext import MLP, build_info
from custom_gelu_ext.mlp import SAVE
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(build_info.module is None, reason=build_info.missing),
]
OPS = torch.ops.custom_gelu_ext


@pytest.fixture(params=[0, 1], ids=["aligned", "unaligned"])
def draw(request, dtype):
    """Return what draws a tensor on the GPU; unaligned ones take the kernels without packs."""

    def normal(*shape: int) -> Tensor:
        count = torch.Size(shape).numel()
        # Memory of exactly this size, so that one element too many is out of bounds.
        flat = torch.randn(count + request.param, device="cuda").to(dtype)
        return flat[request.param :].view(shape)

    return normal


def check(op, *inputs: Tensor | str, tolerance: float = 4.0) -> None:
    """Compare an operator with itself on the CPU; the tolerance is in units of the dtype's eps."""
    got = op(*inputs)
    right = op(*(x.cpu() if isinstance(x, Tensor) else x for x in inputs))
    if isinstance(got, Tensor):
        got, right = (got,), (right,)
    for ours, expected in zip(got, right, strict=True):
        near = {}
        if ours.dtype.is_floating_point:
            eps = tolerance * torch.finfo(ours.dtype).eps
            near = {"rtol": eps, "atol": eps * max(1.0, float(expected.abs().max()))}
        torch.testing.assert_close(ours.cpu(), expected, **near)


def test_sanitizer_elementwise(dtype, approximate, draw):
    tile = 256 * 2 * (16 // dtype.itemsize)  # a block's vector tile
    for n in (1, 67, 255, tile - 1, tile, tile + 1, 2 * tile + 5):
        a, b, c = draw(n), draw(n), draw(n)
        check(OPS.gelu, a, approximate)
        check(OPS.gelu_backward, a, b, approximate)
        check(OPS.gelu_double_backward, a, b, c, approximate)
        check(OPS.geglu, a, b, approximate)
        check(OPS.geglu_backward, a, b, c, approximate)


# One row, one column, fewer rows than a block has, several blocks down and across, more of both
# than either divides.
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 40), (70, 1), (3, 13), (37, 64), (300, 264), (67, 1032)]
)
def test_sanitizer_rows(dtype, approximate, draw, shape):
    grad, x, bias = draw(*shape), draw(*shape), draw(shape[1])
    check(OPS.bias_gelu, x, bias, approximate)
    # The bias's gradient is a sum over rows, in another order on the CPU.
    check(OPS.bias_gelu_backward, grad, x, bias, approximate, tolerance=40.0)
    halves = draw(shape[0], 2 * shape[1]).chunk(2, dim=-1)
    check(OPS.geglu, *halves, approximate)
    check(OPS.geglu_backward, grad, *halves, approximate)


def test_sanitizer_codes(dtype, approximate, draw):
    for n in (1, 7, 8, 9, 2047, 2048, 2053):
        x, grad = draw(n), draw(n)
        y, bits = OPS.gelu_1bit(x, approximate)
        check(OPS.gelu_1bit, x, approximate)
        check(OPS.gelu_1bit_backward, grad, y, bits, approximate, tolerance=40.0)  # a root of y
        y, code = OPS.gelu_8bit(x, approximate)
        eps = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(y, OPS.gelu(x, approximate), rtol=eps, atol=eps)
        check(OPS.gelu_8bit_backward, grad, code)


@pytest.mark.parametrize("save", SAVE)
def test_sanitizer_mlp(approximate, save):
    torch.manual_seed(0)
    block = MLP(24, 61, approximate, save=save, device="cuda")
    x = torch.randn(5, 7, 24, device="cuda", requires_grad=True)
    block(x).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in (x, *block.parameters()))
