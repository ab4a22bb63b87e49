"""torch.compile, opcheck, autocast, vmap, torch.func, CUDA graphs, streams, and the module."""

from __future__ import annotations

import copy
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from custom_gelu_ext import GELU, bias_gelu, build_info, geglu, gelu, gelu_, mlp
from torch import Tensor
from torch.overrides import TorchFunctionMode

pytestmark = pytest.mark.skipif(build_info.module is None, reason=build_info.missing)


def randn(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).to(device)


SAMPLES = {
    "vector": lambda device: randn(17, device=device),
    "empty": lambda device: randn(0, 3, device=device),
    "scalar": lambda device: randn(device=device),
    "transposed": lambda device: randn(4, 6, device=device).t(),
    "with gaps": lambda device: randn(4, 6, device=device)[:, ::2],
    "bfloat16": lambda device: randn(33, device=device, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_opcheck(device, approximate, sample):
    # opcheck: schema, autograd registration, fake kernel against real, and AOT dispatch.
    x = SAMPLES[sample](device)
    ops = torch.ops.custom_gelu_ext
    torch.library.opcheck(ops.gelu.default, (x.clone().requires_grad_(), approximate))
    x = SAMPLES[sample](device)
    arguments = (torch.randn_like(x).requires_grad_(), x.detach().requires_grad_(), approximate)
    torch.library.opcheck(ops.gelu_backward.default, arguments)


def forward_and_gradient(function, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = function(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    return y.detach(), grad


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_without_a_graph_break(device, approximate, backend):
    def block(x: Tensor) -> Tensor:
        return gelu(x * 2, approximate) + 1

    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for shape in ((8, 16), (8, 17), (3, 5, 7)):  # the later ones compile for dynamic shapes
        x = randn(*shape, device=device)
        for got, expected in zip(
            forward_and_gradient(compiled, x), forward_and_gradient(block, x), strict=True
        ):
            torch.testing.assert_close(got, expected)


def test_fake_and_meta_tensors_have_shapes_and_strides():
    x = torch.empty(2, 3, 4, 5, device="meta").to(memory_format=torch.channels_last)
    y = gelu(x)
    assert y.device.type == "meta"
    assert y.stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_dtype_as_it_comes(device, dtype):
    x = randn(4, 8, device=device).requires_grad_()
    linear = torch.nn.Linear(8, 8).to(device)
    with torch.autocast(device.type, dtype=dtype):
        y = gelu(linear(x))
        assert y.dtype == dtype  # as F.gelu: the linear layer decided
        assert gelu(x).dtype == torch.float32
    y.sum().backward()
    assert x.grad.dtype == torch.float32


def test_vmap(device, approximate):
    x = randn(3, 4, 5, device=device)
    for dim in (0, 1, -1):
        got = torch.vmap(lambda x: gelu(x, approximate), in_dims=dim, out_dims=dim)(x)
        torch.testing.assert_close(got, gelu(x, approximate))


def test_per_sample_gradients(device, approximate):
    # vmap over grad: the backward operator is batched too, in both arguments or in one.
    x, shared = randn(6, 5, device=device), randn(5, device=device)

    def loss(x: Tensor, scale: Tensor) -> Tensor:
        return (gelu(x, approximate) * scale).sum()

    got = torch.vmap(torch.func.grad(loss), in_dims=(0, None))(x, shared)
    torch.testing.assert_close(
        got, torch.ops.custom_gelu_ext.gelu_backward(shared.expand(6, 5), x, approximate)
    )
    got = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(shared, x)
    torch.testing.assert_close(
        got, torch.ops.custom_gelu_ext.gelu_backward(x, shared.expand(6, 5), approximate)
    )


@pytest.mark.parametrize("outer", ["jacfwd", "jacrev"])
@pytest.mark.parametrize("inner", ["jacfwd", "jacrev"])
def test_hessian_by_torch_func(device, approximate, outer, inner):
    x = randn(5, device=device, dtype=torch.float64)
    twice = getattr(torch.func, outer)(
        getattr(torch.func, inner)(lambda x: gelu(x, approximate).sum())
    )
    expected = torch.func.hessian(lambda x: F.gelu(x, approximate=approximate).sum())(x)
    torch.testing.assert_close(twice(x), expected)


def test_third_derivatives_by_torch_func(device, approximate):
    x = randn(3, device=device, dtype=torch.float64)

    def third(function, outer):
        return outer(torch.func.hessian(lambda x: function(x, approximate=approximate).sum()))(x)

    expected = third(F.gelu, torch.func.jacrev)
    torch.testing.assert_close(third(gelu, torch.func.jacrev), expected)
    with pytest.raises(NotImplementedError, match=r"use torch\.func\.jacrev"):
        third(gelu, torch.func.jacfwd)


def test_forward_mode(device, dtype, approximate):
    x = randn(50, device=device, dtype=dtype)
    tangent = torch.linspace(-1, 1, 50).to(device, dtype)
    expected = torch.ops.custom_gelu_ext.gelu_backward(tangent, x, approximate)
    _, got = torch.func.jvp(lambda x: gelu(x, approximate), (x,), (tangent,))
    assert torch.equal(got, expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        got = torch.autograd.forward_ad.unpack_dual(gelu(dual, approximate)).tangent
    assert torch.equal(got, expected)


def test_the_module_is_a_stand_in_for_nn_gelu(device, approximate):
    ours, theirs = GELU(approximate), torch.nn.GELU(approximate)
    assert repr(ours) == repr(theirs)
    x = randn(33, device=device)
    torch.testing.assert_close(ours(x), theirs(x))
    again = copy.deepcopy(torch.nn.Sequential(torch.nn.Linear(33, 3), ours)).to(device)
    again.load_state_dict(again.state_dict())
    assert again(x).shape == (3,)


def test_threads_change_nothing():
    x = randn(300_001, device=torch.device("cpu"))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gelu(x)
        torch.set_num_threads(4)
        torch.testing.assert_close(gelu(x), one, rtol=1e-6, atol=0)
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
def test_cuda_graph_capture(approximate):
    x = torch.randn(10_001, device="cuda")
    grad = torch.randn_like(x)
    for _ in range(2):  # warm-up, as capturing asks for
        gelu(x, approximate)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = gelu(x, approximate)
        dx = torch.ops.custom_gelu_ext.gelu_backward(grad, x, approximate)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(y, gelu(x, approximate))
    torch.testing.assert_close(dx, torch.ops.custom_gelu_ext.gelu_backward(grad, x, approximate))


@pytest.mark.gpu
def test_work_goes_to_the_current_stream():
    stream = torch.cuda.Stream()
    x = torch.randn(1 << 20, device="cuda")
    expected = gelu(x + 1)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on another stream would overtake this one
        x.add_(1)
        y = gelu(x)
    stream.synchronize()
    assert torch.equal(y, expected)


class Labelled(torch.Tensor):
    """A subclass, whose __torch_function__ has to see the call."""

    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(function.__name__)
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_subclass_sees_the_call():
    x, weight = torch.randn(3, 4).as_subclass(Labelled), torch.randn(4, 4)
    for function, arguments in (
        (gelu, (x,)),
        (gelu_, (x.clone(),)),
        (bias_gelu, (x, torch.ones(4))),
        (bias_gelu, (torch.ones(3, 4), x[0])),
        (geglu, (torch.ones(3, 4), x)),
        (mlp, (x, weight, None, weight, None)),
    ):
        Labelled.seen.clear()
        assert type(function(*arguments)) is Labelled
        assert Labelled.seen == [function.__name__]
    slope = torch.func.grad(lambda x: gelu(x).sum())(x)
    torch.testing.assert_close(
        slope.as_subclass(Tensor), torch.ops.custom_gelu_ext.gelu_backward(torch.ones(3, 4), x)
    )


def test_a_mode_sees_the_call():
    class Names(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function.__name__)
            return function(*args, **(kwargs or {}))

    seen: list[str] = []
    with Names():
        gelu(torch.ones(3))
    assert "gelu" in seen


@pytest.mark.skipif(not hasattr(build_info.module, "gelu"), reason="the stable build has none")
def test_the_short_way_is_for_ordinary_calls_only():
    short = build_info.module.gelu
    x = torch.randn(3)
    assert torch.equal(short(x, "tanh"), gelu(x, "tanh"))
    assert short(x.clone().requires_grad_(), "none").grad_fn.name() == "GeluBackward"
    for special in (x.int(), x.to_sparse(), x.to("meta"), x.as_subclass(Labelled), [1.0]):
        assert short(special, "none") is None
    assert short(x, "erf") is None
    assert short(x, None) is None
    with torch.autograd.forward_ad.dual_level():
        assert short(x, "none") is None
    seen = []
    torch.func.grad(lambda y: seen.append(short(x, "none")) or y.sum())(x)
    assert seen == [None]


@pytest.mark.multigpu
def test_a_tensor_on_another_device_than_the_current():
    x = torch.randn(1000, device="cuda:1", requires_grad=True)
    with torch.cuda.device(0):
        y = gelu(x)
        y.sum().backward()
    assert y.device == x.grad.device == x.device
    torch.testing.assert_close(y.cpu(), gelu(x.cpu()))
    half, bias = x.detach().view(20, 50).requires_grad_(), x.detach()[:50].requires_grad_()
    with torch.cuda.device(0):
        z = geglu(bias_gelu(half, bias), half)
        z.sum().backward()
    right = geglu(bias_gelu(half.cpu(), bias.cpu()), half.cpu())
    torch.testing.assert_close(z.cpu(), right, rtol=1e-5, atol=1e-6)
    assert half.grad.device == bias.grad.device == x.device
    with pytest.raises(ValueError, match="grad is on cuda:0 but x on cuda:1"):
        torch.ops.custom_gelu_ext.gelu_backward(torch.ones(1000, device="cuda:0"), x.detach())
