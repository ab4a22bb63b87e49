"""bias_gelu, geglu, the in-place form and double backward: values, layouts, gradients, manners."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from custom_gelu_ext import bias_gelu, build_info, geglu, gelu, gelu_
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

needs_extension = pytest.mark.skipif(build_info.module is None, reason=build_info.missing)
pytestmark = needs_extension

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
OPS = torch.ops.custom_gelu_ext


def randn(*shape: int, dtype=torch.float64, device="cpu", seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def bias_reference(x: Tensor, bias: Tensor, approximate: str) -> Tensor:
    return F.gelu(x + bias, approximate=approximate)


def geglu_reference(gate: Tensor, value: Tensor, approximate: str) -> Tensor:
    return F.gelu(gate, approximate=approximate) * value


def compare(ours, reference, inputs: tuple[Tensor, ...], approximate: str) -> None:
    """Forward and all gradients against torch in float64."""
    wide = [x.detach().double().requires_grad_() for x in inputs]
    own = [x.detach().requires_grad_() for x in inputs]
    expected, got = reference(*wide, approximate), ours(*own, approximate)
    assert got.shape == expected.shape
    assert got.dtype == inputs[0].dtype
    grad = randn(*got.shape, dtype=got.dtype, device=got.device, seed=9)
    pairs = [(got, expected)]
    pairs += zip(
        torch.autograd.grad(got, own, grad),
        torch.autograd.grad(expected, wide, grad.double()),
        strict=True,
    )
    for ours_, right in pairs:
        scale = float(right.abs().max()) if right.numel() else 0.0
        torch.testing.assert_close(
            ours_.double(),
            right,
            rtol=TOLERANCE[got.dtype],
            atol=TOLERANCE[got.dtype] * max(scale, 1e-3),
        )


@pytest.mark.parametrize(
    "shape",
    [(5,), (1, 8), (3, 7), (4, 64), (129, 96), (2, 3, 40), (700, 1), (0, 8), (3, 0), (37, 1032)],
)
def test_bias_gelu(device, dtype, approximate, shape):
    x = randn(*shape, dtype=dtype, device=device)
    bias = randn(shape[-1], dtype=dtype, device=device)
    compare(bias_gelu, bias_reference, (x, bias), approximate)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (64, 24), (3, 5, 9), (2, 3, 4, 8)])
def test_geglu(device, dtype, approximate, shape):
    gate = randn(*shape, dtype=dtype, device=device)
    value = randn(*shape, dtype=dtype, device=device, seed=1)
    compare(geglu, geglu_reference, (gate, value), approximate)


LAYOUTS = {
    "halves": lambda x: x.chunk(2, -1)[1],
    "ragged halves": lambda x: x[..., :14].chunk(2, -1)[1],
    "every other row": lambda x: x[:, ::2],
    "gaps in a row": lambda x: x[..., ::2],
    "transposed": lambda x: x.transpose(0, 2),
    "channels last": lambda x: x.movedim(1, -1),
    "one row many times": lambda x: x[:1, :1].expand(4, 6, -1),
    "unaligned": lambda x: x.flatten()[1:385].view(4, 6, 16),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device, dtype, layout):
    view = LAYOUTS[layout]
    x, y = (view(randn(4, 6, 32, dtype=dtype, device=device, seed=s)) for s in (0, 1))
    compare(geglu, geglu_reference, (x, y), "none")
    compare(geglu, geglu_reference, (x, y.contiguous()), "none")
    compare(geglu, geglu_reference, (x.contiguous(), y), "tanh")
    bias = randn(x.shape[-1], dtype=dtype, device=device)
    compare(bias_gelu, bias_reference, (x, bias), "none")
    assert bias_gelu(x, bias).is_contiguous()


def test_halves_of_one_tensor_are_not_copied():
    x = randn(8, 64, dtype=torch.float32)
    with torch.profiler.profile() as profile:
        OPS.geglu(*x.chunk(2, -1))
    assert not [event for event in profile.events() if "copy" in event.name]


@pytest.mark.parametrize("function", ["bias_gelu", "geglu"])
def test_gradcheck(device, approximate, function):
    if function == "bias_gelu":
        inputs = (randn(3, 5, device=device), randn(5, device=device))
        ours = bias_gelu
    else:
        inputs = (randn(3, 5, device=device), randn(3, 5, device=device, seed=1))
        ours = geglu
    for x in inputs:
        x.requires_grad_()
    assert gradcheck(
        lambda *xs: ours(*xs, approximate), inputs, check_forward_ad=True, check_batched_grad=True
    )
    assert gradgradcheck(lambda *xs: ours(*xs, approximate), inputs)


def test_double_backward_is_one_kernel(device, dtype, approximate):
    x, grad, grad_grad = (randn(130, dtype=dtype, device=device, seed=s) for s in range(3))
    got = OPS.gelu_double_backward(grad_grad, grad, x, approximate)
    wide = x.double().requires_grad_()
    (slope,) = torch.autograd.grad(
        F.gelu(wide, approximate=approximate).sum(), wide, create_graph=True
    )
    (curvature,) = torch.autograd.grad(slope.sum(), wide)
    expected = (grad_grad.double() * slope, grad_grad.double() * grad.double() * curvature)
    for ours, right in zip(got, expected, strict=True):
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(ours.double(), right.detach(), rtol=tolerance, atol=tolerance)


def test_second_derivative_far_out(device, dtype, approximate):
    x = torch.tensor([math.inf, -math.inf, 1e4, -1e4, math.nan], device=device).to(dtype)
    one = torch.ones_like(x)
    _, got = OPS.gelu_double_backward(one, one, x, approximate)
    assert torch.equal(got[:4], torch.zeros_like(got[:4]))
    assert got[4].isnan()


def test_the_bias_gradient_has_the_same_bits_every_time(device, dtype):
    x, grad = (randn(3000, 200, dtype=dtype, device=device, seed=s) for s in (0, 1))
    bias = randn(200, dtype=dtype, device=device)
    first = OPS.bias_gelu_backward(grad, x, bias)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            again = OPS.bias_gelu_backward(grad, x, bias)
            assert torch.equal(first[1], again[1])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_bias_gradient_is_summed_wide(device, dtype):
    rows = 40_000  # in 16 bits a running sum of ones stops long before
    x = torch.full((rows, 8), 20.0, dtype=dtype, device=device)
    grad = torch.ones_like(x)
    _, got = OPS.bias_gelu_backward(grad, x, torch.zeros(8, dtype=dtype, device=device))
    assert torch.equal(got, torch.full((8,), float(rows), device=device).to(dtype))


def test_the_sum_is_not_rounded_before_gelu(device):
    x, bias = torch.tensor([[256.0]]), torch.tensor([-255.99])
    x, bias = x.bfloat16().to(device), bias.bfloat16().to(device)
    expected = F.gelu(x.double() + bias.double())
    assert bias_gelu(x, bias).double().item() == expected.bfloat16().double().item()


def test_infinities_and_nan(device, dtype, approximate):
    x = torch.tensor([math.inf, -math.inf, math.nan, -0.0], dtype=dtype, device=device).repeat(9, 8)
    zero = torch.zeros(32, dtype=dtype, device=device)
    expected = gelu(x, approximate)
    torch.testing.assert_close(
        bias_gelu(x, zero, approximate)[..., :3], expected[..., :3], equal_nan=True, rtol=0, atol=0
    )
    torch.testing.assert_close(
        geglu(x, torch.ones_like(x), approximate), expected, equal_nan=True, rtol=0, atol=0
    )


SAMPLES = {
    "bias_gelu": lambda d: (randn(3, 4, device=d), randn(4, device=d)),
    "bias_gelu_backward": lambda d: (
        randn(3, 4, device=d),
        randn(3, 4, device=d),
        randn(4, device=d),
    ),
    "geglu": lambda d: (randn(6, 4, device=d)[::2], randn(3, 4, device=d)),
    "geglu_backward": lambda d: tuple(randn(3, 4, device=d, seed=s) for s in range(3)),
    "gelu_double_backward": lambda d: tuple(randn(3, 4, device=d, seed=s) for s in range(3)),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(device, name):
    inputs = tuple(x.requires_grad_() for x in SAMPLES[name](device))
    torch.library.opcheck(getattr(OPS, name).default, (*inputs, "tanh"))


def test_opcheck_in_place(device):
    torch.library.opcheck(OPS.gelu_.default, (randn(3, 4, device=device), "none"))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_without_a_graph_break(device, backend):
    def block(x: Tensor, bias: Tensor) -> Tensor:
        gate, value = (bias_gelu(x, bias) * 2).chunk(2, -1)
        return geglu(gate, value, "tanh") + 1

    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    inputs = (
        randn(6, 8, dtype=torch.float32, device=device).requires_grad_(),
        randn(8, dtype=torch.float32, device=device).requires_grad_(),
    )
    expected, got = block(*inputs), compiled(*inputs)
    torch.testing.assert_close(got, expected)
    for ours, right in zip(
        torch.autograd.grad(got.sum(), inputs),
        torch.autograd.grad(expected.sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, right)


def test_autocast(device):
    linear = torch.nn.Linear(8, 8).to(device)
    bias = torch.nn.Parameter(torch.ones(8, device=device))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y = bias_gelu(linear(torch.ones(2, 8, device=device)), bias)
        z = geglu(y, bias.expand(2, 8))
    assert y.dtype == torch.bfloat16
    assert z.dtype == torch.float32
    z.sum().backward()
    assert bias.grad.dtype == torch.float32


def test_torch_func(device, approximate):
    x, bias = randn(4, 3, device=device), randn(3, device=device)
    for ours, reference, inputs in (
        (bias_gelu, bias_reference, (x, bias)),
        (geglu, geglu_reference, (x, x + 1)),
    ):
        for transform in (torch.func.jacrev, torch.func.jacfwd):
            got = transform(lambda *xs, f=ours: f(*xs, approximate), argnums=(0, 1))(*inputs)
            expected = transform(lambda *xs, f=reference: f(*xs, approximate), argnums=(0, 1))(
                *inputs
            )
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("layout", ["whole", "with gaps"])
def test_in_place(device, dtype, approximate, layout):
    x = randn(6, 10, dtype=dtype, device=device)
    x = x if layout == "whole" else x[:, ::2]
    expected, version = gelu(x, approximate), x._version
    y = gelu_(x, approximate)
    assert y is x
    assert torch.equal(x, expected)
    assert x._version > version


def test_in_place_is_refused_where_it_is_illegal(device):
    x = randn(3, device=device).requires_grad_()
    with pytest.raises(RuntimeError, match=r"requires a gradient.*use gelu\(x\)"):
        gelu_(x * 1)
    with torch.no_grad():
        gelu_(x)
    with pytest.raises(RuntimeError, match="not under torch"):
        torch.vmap(gelu_)(randn(2, 3, device=device))
    saved = randn(3, device=device).requires_grad_()
    product = saved * saved.detach()
    gelu_(saved.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_in_place_under_inference_mode_is_noticed_in_backward(device):
    leaf = randn(3, device=device).requires_grad_()
    source = leaf * 1
    y = source * source.detach()
    with torch.inference_mode():
        gelu_(source.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_in_place_on_a_tensor_of_inference_mode(device):
    with torch.inference_mode():
        x = randn(3, device=device)
        before = x.clone()
        gelu_(x)
        assert torch.equal(x, gelu(before))
    written = x.clone()
    with pytest.raises(RuntimeError, match=r"made in inference_mode.*x\.clone\(\) first"):
        gelu_(x)
    assert torch.equal(x, written)


def test_second_derivatives_without_columns(device):
    x = randn(3, 0, device=device).requires_grad_()
    bias = randn(0, device=device).requires_grad_()
    grads = torch.autograd.grad(bias_gelu(x, bias).sum(), (x, bias), create_graph=True)
    again = torch.autograd.grad(sum(g.sum() for g in grads), (x, bias))
    assert [g.shape for g in again] == [(3, 0), (0,)]


def test_what_does_not_fit_is_refused(device):
    x, bias = randn(3, 4, device=device), randn(4, device=device)
    with pytest.raises(ValueError, match=r"\[3\] must be \[C\].*x's shape is \[3, 4\]"):
        bias_gelu(x, bias[:3])
    with pytest.raises(ValueError, match=r"must be \[C\]"):
        bias_gelu(x[0, 0], bias)
    with pytest.raises(TypeError, match=r"dtype torch\.float32 must be x's, torch\.float64"):
        bias_gelu(x, bias.float())
    with pytest.raises(ValueError, match=r"\[4\] must be gate's, \[3, 4\]"):
        geglu(x, bias)
    with pytest.raises(TypeError, match=r"geglu: value must be a torch\.Tensor, got float"):
        geglu(x, 1.0)
    with pytest.raises(TypeError, match="bias's dtype must be float32"):
        bias_gelu(x, bias.int())
    with pytest.raises(ValueError, match="'none' or 'tanh', got 'erf'"):
        geglu(x, x, "erf")


@pytest.mark.gpu
@pytest.mark.slow
def test_more_elements_than_32_bits_can_count():
    rows, width = 2**20 + 1, 2048
    x = torch.randn(1, width, device="cuda").bfloat16().expand(rows, width).contiguous()
    bias = torch.randn(width, device="cuda").bfloat16()
    y = bias_gelu(x, bias)
    assert torch.equal(y, bias_gelu(x[:1], bias).expand(rows, width))
    z = geglu(x, y)
    assert torch.equal(z, geglu(x[:1], y[:1]).expand(rows, width))
