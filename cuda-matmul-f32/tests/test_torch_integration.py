"""Autograd, torch.func, torch.compile and torch's own op checks."""

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


def test_second_derivatives_equal_float64_autograd(auto):
    def second(a, b, product):
        (grad_a,) = torch.autograd.grad(product(a, b).pow(2).sum(), a, create_graph=True)
        return torch.autograd.grad(grad_a.pow(2).sum(), (a, b))

    # Small numbers: fourth-order terms of integers must stay exact in float32.
    a = auto.integers(3, 4).sign().requires_grad_()
    b = auto.integers(4, 2, seed=1).sign().requires_grad_()
    expected = second(*(x.detach().double().requires_grad_() for x in (a, b)), torch.matmul)
    for grad, exact in zip(second(a, b, auto), expected, strict=True):
        assert torch.equal(grad.double(), exact)


@pytest.mark.parametrize("which", [0, 1])
def test_only_the_gradient_that_is_asked_for(auto, which):
    inputs = [auto.integers(5, 6), auto.integers(6, 7, seed=1)]
    inputs[which].requires_grad_()
    auto(*inputs).sum().backward()
    assert inputs[which].grad is not None
    assert inputs[1 - which].grad is None


def test_gradients_through_views_and_an_expanded_gradient(auto):
    base = auto.integers(12, 20).requires_grad_()
    auto(base[::2, 1:9].t(), base[::2, 9:]).sum().backward()  # sum: dC is one value, expanded
    base64 = base.detach().double().requires_grad_()
    (base64[::2, 1:9].t() @ base64[::2, 9:]).sum().backward()
    assert torch.equal(base.grad.double(), base64.grad)


def test_gradients_of_empty_products(auto):
    a = auto.integers(4, 0).requires_grad_()
    b = auto.integers(0, 3).requires_grad_()
    auto(a, b).sum().backward()
    assert a.grad.shape == (4, 0)
    assert b.grad.shape == (0, 3)


def test_forward_mode_equals_float64(auto):
    a, b = auto.integers(13, 21), auto.integers(21, 7, seed=1)
    da, db = auto.integers(13, 21, seed=2), auto.integers(21, 7, seed=3)
    for tangents in ((da, db), (da, torch.zeros_like(b)), (torch.zeros_like(a), db)):
        c, tangent = torch.func.jvp(auto, (a, b), tangents)
        expected = torch.func.jvp(
            torch.matmul, (a.double(), b.double()), tuple(x.double() for x in tangents)
        )
        assert torch.equal(c.double(), expected[0])
        assert torch.equal(tangent.double(), expected[1])


def _loss(product):
    return lambda a, b: product(a, b).sin().sum()


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(f, (0, 1)),
    "vjp": lambda f: lambda a, b: torch.func.vjp(f, a, b)[1](torch.ones_like(f(a, b))),
    "jacrev": lambda f: torch.func.jacrev(f, (0, 1)),
    "jacfwd": lambda f: torch.func.jacfwd(f, (0, 1)),
    "hessian": lambda f: torch.func.hessian(f, (0, 1)),
    "grad of grad": lambda f: torch.func.grad(lambda a, b: torch.func.grad(f)(a, b).square().sum()),
    "vmap of grad": lambda f: (
        lambda a, b: torch.func.vmap(torch.func.grad(f), (0, None))(torch.stack([a, -a]), b)
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_funcs_transforms_give_torch_matmuls_results(auto, transform):
    a, b = auto.normals(3, 4), auto.normals(4, 5, seed=1)
    ours = TRANSFORMS[transform](_loss(auto))(a, b)
    torchs = TRANSFORMS[transform](_loss(torch.matmul))(a.double(), b.double())
    pairs = zip(*map(torch.utils._pytree.tree_leaves, (ours, torchs)), strict=True)
    for x, y in pairs:
        torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [(0, 0), (0, None), (None, 0), (1, 2), (2, 1), (-1, 0)])
@pytest.mark.parametrize("batch", [(), (4,)], ids=["matrices", "batches"])
def test_vmap(auto, dims, batch):
    def draw(dim, *shape, seed):
        x = auto.integers(*(() if dim is None else (6,)), *batch, *shape, seed=seed)
        return x if dim is None else x.movedim(0, dim)

    a, b = draw(dims[0], 3, 5, seed=0), draw(dims[1], 5, 2, seed=1)
    expected = torch.func.vmap(torch.matmul, dims)(a.double(), b.double())
    assert torch.equal(torch.func.vmap(auto, dims)(a, b).double(), expected)


def test_vmap_is_one_call_of_the_op(auto):
    a, b = auto.integers(6, 3, 5), auto.integers(5, 2)
    with torch.profiler.profile() as profile:
        torch.func.vmap(auto, (0, None))(a, b)
    assert sum(event.name == "cuda_matmul_f32::matmul" for event in profile.events()) <= 2


def test_an_input_changed_before_backward_is_noticed(auto):
    a, b = auto.integers(3, 4).requires_grad_(), auto.integers(4, 5)
    c = auto(a, b)
    b.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        c.sum().backward()


def test_what_no_gradient_needs_is_not_kept(auto):
    a, b = auto.integers(3, 4).requires_grad_(), auto.integers(4, 5)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        auto(a, b)
    assert [x.shape for x in kept] == [b.shape]  # a would be for b's gradient


@pytest.mark.parametrize("grads", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("batch", [(), (3,)], ids=["matrix", "batch"])
def test_opcheck(auto, grads, batch):
    a = auto.normals(*batch, 9, 7).requires_grad_(grads[0])
    b = auto.normals(*batch, 11, 7, seed=1).mT.detach().requires_grad_(grads[1])
    torch.library.opcheck(torch.ops.cuda_matmul_f32.matmul.default, (a, b, auto.kernel))


@pytest.mark.parametrize("batch", [(), (3,)], ids=["matrix", "batch"])
def test_opcheck_out(auto, batch):
    a, b = auto.normals(*batch, 9, 7), auto.normals(*batch, 7, 11, seed=1)
    out = torch.empty(*batch, 9, 11, device=auto.device)
    torch.library.opcheck(torch.ops.cuda_matmul_f32.matmul.out, (a, b, auto.kernel), {"out": out})


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.usefixtures("compile_afresh")
def test_compiles_into_one_graph(auto, dynamic):
    def layer(a, b):
        return torch.relu(auto(a, b.mT) + 1.0)

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for *batch, m, n, k in ((5, 6, 7), (8, 9, 10), (2, 5, 6, 7), (3, 4, 9, 8)):
        inputs = [auto.integers(*batch, m, k), auto.integers(n, k, seed=1)]
        for x in inputs:
            x.requires_grad_()
        out = compiled(*inputs)
        assert torch.equal(out, layer(*inputs))
        grads = torch.autograd.grad(out.sum(), inputs)
        expected = torch.autograd.grad(layer(*inputs).sum(), inputs)
        assert all(torch.equal(x, y) for x, y in zip(grads, expected, strict=True))


@pytest.mark.usefixtures("compile_afresh")
def test_dynamic_sizes_compile_once(auto):
    count = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(auto.__call__, backend=count, fullgraph=True, dynamic=True)
    for batch, m, n, k in ((2, 5, 6, 7), (3, 8, 9, 10), (5, 4, 3, 12)):
        a, b = auto.integers(batch, m, k), auto.integers(batch, k, n, seed=1)
        assert torch.equal(compiled(a, b).cpu(), auto.exact(a, b))
    assert count.frame_count == 1


@pytest.mark.usefixtures("compile_afresh")
def test_out_compiles_too(auto):
    def function(a, b, out):
        return auto(a, b, out=out) * 2

    a, b = auto.integers(3, 4), auto.integers(4, 5)
    out = torch.zeros(3, 5, device=auto.device)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(a, b, out), 2 * out)
    assert torch.equal(out.cpu(), auto.exact(a, b))


def test_exports_with_a_free_size():
    class Layer(torch.nn.Module):
        def forward(self, a, b):
            return matmul(a, b)

    a, b = torch.ones(3, 4), torch.ones(4, 5)
    free = {"a": {0: torch.export.Dim("rows")}, "b": None}
    program = torch.export.export(Layer(), (a, b), dynamic_shapes=free)
    assert torch.equal(program.module()(torch.ones(9, 4), b), torch.full((9, 5), 4.0))


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
def test_wrong_shapes_are_caught_while_tracing(auto):
    compiled = torch.compile(auto.__call__, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="must be equal"):
        compiled(auto.integers(3, 4), auto.integers(5, 6))
