"""Autograd, torch.compile and torch's own op checks, on every rung of both ladders."""

from __future__ import annotations

import pytest
import torch
from cuda_matmul_f32 import matmul


@pytest.fixture
def compile_afresh():
    """Each test compiles its own functions; torch counts recompilations per line of source."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_gradients_equal_float64_autograd(rung):
    a = rung.integers(23, 31).requires_grad_()
    b = rung.integers(31, 17, seed=1).requires_grad_()
    weight = rung.integers(23, 17, seed=2)
    grads = torch.autograd.grad((rung(a, b) * weight).sum(), (a, b))
    a64, b64 = (x.detach().double().requires_grad_() for x in (a, b))
    expected = torch.autograd.grad(((a64 @ b64) * weight.double()).sum(), (a64, b64))
    for grad, exact in zip(grads, expected, strict=True):
        assert torch.equal(grad.double(), exact)  # integers: no rounding


def test_second_derivatives_equal_float64_autograd(rung):
    def second(a, b, product):
        (grad_a,) = torch.autograd.grad(product(a, b).pow(2).sum(), a, create_graph=True)
        return torch.autograd.grad(grad_a.pow(2).sum(), (a, b))

    # Small numbers: fourth-order terms of integers must stay exact in float32.
    a = rung.integers(3, 4).sign().requires_grad_()
    b = rung.integers(4, 2, seed=1).sign().requires_grad_()
    expected = second(*(x.detach().double().requires_grad_() for x in (a, b)), torch.matmul)
    for grad, exact in zip(second(a, b, rung), expected, strict=True):
        assert torch.equal(grad.double(), exact)


@pytest.mark.parametrize("which", [0, 1])
def test_only_the_gradient_that_is_asked_for(rung, which):
    inputs = [rung.integers(5, 6), rung.integers(6, 7, seed=1)]
    inputs[which].requires_grad_()
    rung(*inputs).sum().backward()
    assert inputs[which].grad is not None
    assert inputs[1 - which].grad is None


def test_gradients_through_views_and_an_expanded_gradient(rung):
    base = rung.integers(12, 20).requires_grad_()
    rung(base[::2, 1:9].t(), base[::2, 9:]).sum().backward()  # sum: dC is one value, expanded
    base64 = base.detach().double().requires_grad_()
    (base64[::2, 1:9].t() @ base64[::2, 9:]).sum().backward()
    assert torch.equal(base.grad.double(), base64.grad)


def test_gradients_of_empty_products(rung):
    a = rung.integers(4, 0).requires_grad_()
    b = rung.integers(0, 3).requires_grad_()
    rung(a, b).sum().backward()
    assert a.grad.shape == (4, 0)
    assert b.grad.shape == (0, 3)


@pytest.mark.parametrize("grads", [(False, False), (True, False), (False, True), (True, True)])
def test_opcheck(rung, grads):
    a = rung.normals(9, 7).requires_grad_(grads[0])
    b = rung.normals(11, 7, seed=1).t().requires_grad_(grads[1])
    torch.library.opcheck(torch.ops.cuda_matmul_f32.matmul.default, (a, b, rung.kernel))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.usefixtures("compile_afresh")
def test_compiles_into_one_graph(rung, dynamic):
    def layer(a, b):
        return torch.relu(rung(a, b.t()) + 1.0)

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for m, n, k in ((5, 6, 7), (8, 9, 10)):
        inputs = [rung.integers(m, k), rung.integers(n, k, seed=1)]
        for x in inputs:
            x.requires_grad_()
        out = compiled(*inputs)
        assert torch.equal(out, layer(*inputs))
        grads = torch.autograd.grad(out.sum(), inputs)
        expected = torch.autograd.grad(layer(*inputs).sum(), inputs)
        assert all(torch.equal(x, y) for x, y in zip(grads, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.usefixtures("compile_afresh")
def test_inductor_compiles_it(device):
    a = torch.randn(33, 65, device=device, requires_grad=True)
    b = torch.randn(65, 17, device=device, requires_grad=True)

    def layer(a, b):
        return torch.nn.functional.gelu(matmul(a, b)).sum()

    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(a, b), layer(a, b))
    got = torch.autograd.grad(compiled(a, b), (a, b))
    expected = torch.autograd.grad(layer(a, b), (a, b))
    torch.testing.assert_close(got, expected)


@pytest.mark.usefixtures("compile_afresh")
def test_wrong_shapes_are_caught_while_tracing(rung):
    compiled = torch.compile(rung.__call__, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="must be equal"):
        compiled(rung.integers(3, 4), rung.integers(5, 6))
