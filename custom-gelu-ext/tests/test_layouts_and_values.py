"""Shapes, strides, alignment, and the values at the edge of each type."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from custom_gelu_ext import bias_gelu, build_info, gelu
from torch import Tensor

pytestmark = pytest.mark.skipif(build_info.module is None, reason=build_info.missing)

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}


def randn(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def check(x: Tensor, approximate: str) -> None:
    """Forward and gradient against torch in float64; shape, dtype and strides as empty_like's."""
    wide = x.detach().double().requires_grad_()
    expected = F.gelu(wide, approximate=approximate)
    grad = torch.linspace(-1, 2, x.numel(), dtype=torch.float64, device=x.device).reshape(x.shape)
    grad = grad.to(x.dtype)
    (expected_grad,) = torch.autograd.grad(expected, wide, grad.double())
    got = gelu(x, approximate)
    got_grad = torch.ops.custom_gelu_ext.gelu_backward(grad, x, approximate)
    tolerance = TOLERANCE[x.dtype]
    for ours, right in ((got, expected), (got_grad, expected_grad)):
        assert ours.shape == x.shape
        assert ours.dtype == x.dtype
        assert ours.device == x.device
        assert ours.stride() == torch.empty_like(x).stride()
        torch.testing.assert_close(
            ours.double(), right.detach(), rtol=tolerance, atol=tolerance / 5
        )


def test_every_size_from_0_to_67(device, dtype, approximate):
    for n in range(68):
        check(randn(n, dtype=dtype, device=device), approximate)


@pytest.mark.parametrize("n", [4095, 4096, 4097, 16_385, 70_001])
def test_sizes_around_a_tile_and_a_thread(device, dtype, n):
    check(randn(n, dtype=dtype, device=device), "none")


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (1, 1), (7, 13), (2, 3, 5, 7)])
def test_shapes(device, dtype, shape):
    check(randn(*shape, dtype=dtype, device=device), "none")


EMPTY = {
    "no rows": lambda x: x[:0, :, ::2],
    "no rows, one element many times": lambda x: x[0, 0, 0].expand(0, 3, 4),
    "no row in the middle": lambda x: x[:, :0, 1::3],
    "no columns": lambda x: x[::2, 1:, 8:],
    "nothing": lambda x: x[:0, :0, :0],
}


@pytest.mark.parametrize("layout", EMPTY)
def test_empty_tensors_of_odd_strides(device, dtype, layout):
    ops = torch.ops.custom_gelu_ext
    x = EMPTY[layout](randn(3, 6, 8, dtype=dtype, device=device))
    bias = randn(2 * x.shape[-1], dtype=dtype, device=device)[::2]
    for call, *inputs in (
        (ops.gelu, x),
        (ops.gelu_backward, x, x),
        (ops.gelu_double_backward, x, x, x),
        (ops.bias_gelu, x, bias),
        (ops.geglu, x, x),
        (ops.geglu_backward, x, x, x),
        (ops.gelu_8bit, x),
        (ops.gelu_1bit, x),
    ):
        results = call(*inputs)
        first, *_ = results if isinstance(results, tuple) else (results,)
        assert first.shape == x.shape
    for grad in (x, torch.ones_like(x), torch.ones((), dtype=dtype, device=device).expand(x.shape)):
        to_x, to_bias = ops.bias_gelu_backward(grad, x, bias)
        assert to_x.shape == x.shape
        assert torch.equal(to_bias, torch.zeros_like(bias))
    ops.gelu_(x)
    assert ops.gelu_8bit_backward(x, ops.gelu_8bit(x)[1]).shape == x.shape
    assert ops.gelu_1bit_backward(x, *ops.gelu_1bit(x)).shape == x.shape


def test_gradients_of_an_empty_batch(device):
    x = torch.randn(0, 4, device=device, requires_grad=True)
    bias = torch.randn(4, device=device, requires_grad=True)
    bias_gelu(x, bias).sum().backward()  # the sum's gradient has strides of 0
    assert x.grad.shape == (0, 4)
    assert torch.equal(bias.grad, torch.zeros(4, device=device))


ONE_WIDE = {  # the stride of a dimension of size 1 is whatever it was cut from
    "last token": lambda x: x[:, -1:],
    "one pixel": lambda x: x.view(2, 12, 1, 1).as_strided((2, 12, 1, 1), (12, 1, 12, 12)),
}


@pytest.mark.parametrize("layout", ONE_WIDE)
def test_the_stride_of_a_single_element_makes_no_copy(device, layout):
    x = ONE_WIDE[layout](randn(1, 2, 12, dtype=torch.float32, device=device))
    assert x.stride() != x.clone(memory_format=torch.contiguous_format).stride()
    check(x, "none")
    grad = torch.ones(x.shape, device=device)
    with torch.profiler.profile() as profile:
        gelu(x)
        torch.ops.custom_gelu_ext.gelu_backward(grad, x, "none")
    assert not [event for event in profile.events() if "copy" in event.name]


LAYOUTS = {
    "transposed": lambda x: x.transpose(1, 3),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: x[:, ::2, :, 1::3],
    "sliced": lambda x: x[1:, :, 2:],
    "expanded": lambda x: x[:, :1].expand(-1, 6, -1, -1),
    "flipped": lambda x: x.flip(2).permute(2, 0, 3, 1),
    "unaligned": lambda x: x.flatten()[1:],
    "negative view": lambda x: torch._neg_view(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device, dtype, layout):
    x = LAYOUTS[layout](randn(3, 6, 8, 7, dtype=dtype, device=device))
    check(x, "none")


def test_channels_last_stays_channels_last(device):
    x = randn(2, 8, 5, 3, dtype=torch.float32, device=device).to(memory_format=torch.channels_last)
    x.requires_grad_()
    y = gelu(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.backward(torch.ones_like(y))
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_a_gradient_in_another_layout_than_x(device, dtype):
    x = randn(6, 10, dtype=dtype, device=device)
    grad = randn(10, 6, dtype=dtype, device=device).t()
    got = torch.ops.custom_gelu_ext.gelu_backward(grad, x, "none")
    expected = torch.ops.custom_gelu_ext.gelu_backward(grad.contiguous(), x, "none")
    assert torch.equal(got, expected)
    assert got.is_contiguous()


def test_every_alignment(device, dtype, approximate):
    data = randn(300, dtype=dtype, device=device)
    whole = gelu(data, approximate)
    for offset in range(17):
        part = data[offset : offset + 250]
        torch.testing.assert_close(
            gelu(part, approximate), whole[offset : offset + 250], rtol=TOLERANCE[dtype] / 2, atol=0
        )


def test_the_input_is_left_alone(device, dtype):
    x = randn(1000, dtype=dtype, device=device)
    before = x.clone()
    gelu(x)
    torch.ops.custom_gelu_ext.gelu_backward(x, x, "none")
    assert torch.equal(x, before)


def test_infinities_nan_and_zeros(device, dtype, approximate):
    # Repeated, so that the vector loop meets them as well as the scalar tail.
    special = [math.inf, -math.inf, math.nan, -math.nan, 0.0, -0.0]
    x = torch.tensor(special * 40, dtype=dtype, device=device)
    expected = torch.tensor([math.inf, -0.0, math.nan, math.nan, 0.0, -0.0] * 40, dtype=dtype)
    y = gelu(x, approximate).cpu()
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    number = ~y.isnan()
    assert torch.equal(y.signbit()[number], expected.signbit()[number])

    slope = torch.ops.custom_gelu_ext.gelu_backward(torch.ones_like(x), x, approximate).cpu()
    expected = torch.tensor([1.0, 0.0, math.nan, math.nan, 0.5, 0.5] * 40, dtype=dtype)
    torch.testing.assert_close(slope, expected, rtol=0, atol=0, equal_nan=True)


def test_what_the_readme_says_of_special_values(device, dtype, approximate):
    ops = torch.ops.custom_gelu_ext
    next_to_0 = -torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    far = {torch.float16: -7.0, torch.float64: -39.0}.get(dtype, -15.0)
    values = [math.inf, -math.inf, 2 * far, far, math.nan, -0.0, next_to_0]
    x = torch.tensor(values, dtype=dtype, device=device)
    y, one, bend = gelu(x, approximate).cpu(), torch.ones_like(x), math.sqrt(2 / math.pi)
    expected = torch.tensor([math.inf, -0.0, -0.0, -0.0, math.nan, -0.0], dtype=dtype)
    torch.testing.assert_close(y[:-1], expected, rtol=0, atol=0, equal_nan=True)
    number = ~y.isnan()
    assert torch.equal(y.signbit()[number], x.cpu().signbit()[number])
    assert y[-1].item() in (0.0, x[-1].item())
    first, second = ops.gelu_double_backward(one, one, x, approximate)
    for got, right in (
        (ops.gelu_backward(one, x, approximate), [1.0, 0.0, 0.0, 0.0, math.nan, 0.5, 0.5]),
        (first, [1.0, 0.0, 0.0, 0.0, math.nan, 0.5, 0.5]),
        (second, [0.0, 0.0, 0.0, 0.0, math.nan, bend, bend]),
    ):
        near = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0, "equal_nan": True}
        torch.testing.assert_close(got.cpu(), torch.tensor(right, dtype=dtype), **near)


def test_largest_and_smallest_values(device, dtype, approximate):
    info = torch.finfo(dtype)
    x = torch.tensor([info.max, -info.max, 1000.0, -1000.0] * 20, dtype=dtype, device=device)
    y = gelu(x, approximate)
    assert torch.equal(y, x.clamp_min(0))
    assert torch.equal(y.signbit(), x.signbit())
    tiny = torch.tensor([info.tiny, -info.tiny] * 20, dtype=dtype, device=device)
    assert torch.equal(gelu(tiny, approximate), tiny / 2)  # subnormal results


def test_a_nan_gradient_comes_through(device, dtype):
    grad = torch.tensor([math.nan, math.inf, 1.0], dtype=dtype, device=device)
    x = torch.ones(3, dtype=dtype, device=device)
    got = torch.ops.custom_gelu_ext.gelu_backward(grad, x, "none")
    assert got[0].isnan()
    assert got[1] == math.inf
    assert got[2].isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_each_nan_of_16_bits_stays_one(device, dtype, approximate):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    nan = patterns[patterns.isnan()].to(device)
    number = torch.ones_like(nan)
    assert gelu(nan, approximate).isnan().all()
    assert bias_gelu(torch.stack([number, number]), nan, approximate).isnan().all()
    for grad, x in ((nan, number), (number, nan)):
        assert torch.ops.custom_gelu_ext.gelu_backward(grad, x, approximate).isnan().all()


@pytest.mark.gpu
@pytest.mark.slow
def test_more_elements_than_32_bits_can_count():
    n = 2**31 + 4099
    pattern = torch.randn(2**20 + 1, device="cuda").bfloat16()  # an odd period: tiles never repeat
    x = torch.empty(n, dtype=torch.bfloat16, device="cuda")
    for start in range(0, n, len(pattern)):
        piece = x[start : start + len(pattern)]
        piece.copy_(pattern[: len(piece)])
    expected = gelu(pattern)
    y = gelu(x)
    for start in range(0, n, len(pattern)):
        piece = y[start : start + len(pattern)]
        assert torch.equal(piece, expected[: len(piece)]), start
    del y
    expected = torch.ops.custom_gelu_ext.gelu_backward(pattern, pattern, "none")
    y = torch.ops.custom_gelu_ext.gelu_backward(x, x, "none")
    for start in range(0, n, len(pattern)):
        piece = y[start : start + len(pattern)]
        assert torch.equal(piece, expected[: len(piece)]), start
