"""Batches, vectors and broadcasting: the same shapes and values as torch.matmul, for each rung."""

from __future__ import annotations

import pytest
import torch
from cuda_matmul_f32 import matmul
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# What torch.matmul takes besides two matrices.
SHAPES = [
    ((5,), (5,)),
    ((5,), (5, 4)),
    ((3, 5), (5,)),
    ((0,), (0,)),
    ((2, 3, 5), (5,)),
    ((5,), (2, 5, 4)),
    ((2, 3, 5), (5, 4)),
    ((3, 5), (2, 5, 4)),
    ((2, 3, 5), (2, 5, 4)),
    ((1, 3, 5), (7, 5, 4)),
    ((7, 3, 5), (1, 5, 4)),
    ((6, 1, 3, 5), (2, 5, 4)),
    ((6, 2, 3, 5), (1, 1, 5, 4)),
    ((6, 2, 3, 5), (6, 1, 5, 4)),
    ((6, 2, 3, 5), (5, 4)),
    ((3, 5), (1, 1, 5, 4)),
    ((0, 3, 5), (5, 4)),
    ((0, 3, 5), (1, 5, 4)),
    ((2, 0, 5), (2, 5, 4)),
    ((2, 3, 0), (2, 0, 4)),
    ((2, 3, 0), (0, 4)),
]
VIEWS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch_last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "batch_reversed_in_memory": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every_other": lambda x: x.repeat_interleave(2, 0).repeat_interleave(3, 2)[::2, :, ::3],
    "first_for_all": lambda x: x[:1].expand_as(x),
    "overlapping_windows": lambda x: x.flatten().as_strided(x.shape, (1, 2, 1)),
}


def padded(x: torch.Tensor) -> torch.Tensor:
    """The same values inside a larger tensor of NaN, which no kernel may read."""
    larger = torch.full([size + 3 for size in x.shape], float("nan"), device=x.device)
    inside = larger[tuple(slice(1, size + 1) for size in x.shape)]
    inside.copy_(x)
    return inside


@pytest.mark.parametrize(("a", "b"), SHAPES, ids=str)
def test_shapes_are_those_of_torch(rung, a, b):
    rung.check_exact(rung.integers(*a), rung.integers(*b, seed=1))


@pytest.mark.parametrize(
    "shape", [(3, 7, 11, 13), (2, 130, 129, 67), (37, 1, 5, 64), (5, 33, 1, 9)]
)
def test_ragged_batches_are_exact(rung, shape):
    batch, m, n, k = shape
    rung.check_exact(rung.integers(batch, m, k), rung.integers(batch, k, n, seed=1))


@pytest.mark.parametrize("view_b", VIEWS)
@pytest.mark.parametrize("view_a", VIEWS)
def test_batches_of_any_strides(rung, view_a, view_b):
    a = VIEWS[view_a](rung.integers(4, 35, 19))
    b = VIEWS[view_b](rung.integers(4, 19, 41, seed=1))
    rung.check_exact(a, b)


def test_only_the_batchs_own_elements_are_read(rung):
    rung.check_exact(padded(rung.integers(3, 33, 20)), padded(rung.integers(3, 20, 17, seed=1)))
    rung.check_exact(padded(rung.integers(3, 33, 20)), padded(rung.integers(20, 17, seed=1)))


def test_nan_and_inf_stay_in_their_product(rung):
    a, b = rung.integers(3, 33, 40), rung.integers(3, 40, 35, seed=1)
    a[1, -1, -1], b[1, 0, 0] = float("nan"), float("inf")
    rung.check_exact(a, b)


def test_a_batch_has_the_bits_of_its_products(rung):
    a, b = rung.normals(5, 60, 333), rung.normals(5, 333, 70, seed=1)
    each = torch.stack([rung(x, y) for x, y in zip(a, b, strict=True)])
    error = (rung(a, b).double() - each.double()).norm() / each.double().norm()
    assert error < 1e-6  # not equal bits: a kernel may split K differently for a batch
    assert all(torch.equal(rung(a, b), rung(a, b)) for _ in range(3))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_broadcasts_equal_torch(rung, data):
    batch = data.draw(st.lists(st.integers(0, 3), max_size=3), label="batch")
    m, n, k = (data.draw(st.integers(0, 20), label=x) for x in "mnk")

    def draw(rows: int, cols: int, seed: int) -> torch.Tensor:
        own = batch[data.draw(st.integers(0, len(batch))) :]
        own = [1 if data.draw(st.booleans()) else size for size in own]
        x = rung.integers(*own, rows, cols, seed=seed)
        order = data.draw(st.permutations(range(x.dim())))  # the same tensor, laid out otherwise
        back = [order.index(d) for d in range(x.dim())]
        return x.permute(order).contiguous().permute(back)

    rung.check_exact(draw(m, k, 0), draw(k, n, 1))


@pytest.mark.parametrize(("a", "b"), SHAPES, ids=str)
def test_gradients_have_the_inputs_shapes_and_float64s_values(auto, a, b):
    inputs = [auto.integers(*a).requires_grad_(), auto.integers(*b, seed=1).requires_grad_()]
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    product, expected = auto(*inputs), torch.matmul(*doubles)
    weight = auto.integers(*product.shape, seed=2)
    grads = torch.autograd.grad((product * weight).sum(), inputs)
    exact_grads = torch.autograd.grad((expected * weight.double()).sum(), doubles)
    for grad, x in zip(grads, exact_grads, strict=True):
        assert grad.dtype == torch.float32
        assert torch.equal(grad.double(), x)


def test_one_matrix_for_a_batch_gets_its_gradient_in_one_product(auto, monkeypatch):
    # Else [batch, K, N] gradients are stored and summed: 64 times the memory here.
    a, b = auto.integers(64, 3, 5), auto.integers(5, 4, seed=1).requires_grad_()
    shapes = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if "cuda_matmul_f32" in str(func):
                shapes.append(tuple(out.shape))
            return out

    for view in (a, a.transpose(0, 1)):
        shapes.clear()
        with Record():
            auto(view, b).sum().backward()
        assert shapes == [(192, 4), (5, 4)]


def test_views_are_not_copied(auto):
    a = auto.integers(2, 8, 3, 5)
    for x, y in (
        (a, auto.integers(5, 4)),
        (a[0].mT, auto.integers(3, 4)),
        (a.flatten(0, 1), auto.integers(1, 5, 4)),
        (a.flatten(0, 1), auto.integers(5, 4).expand(16, 5, 4)),
        (a[0, 0], auto.integers(64, 5, 4)),
    ):
        with torch.profiler.profile() as profile:
            auto(x, y)
        names = {event.name for event in profile.events()}
        assert not names & {"aten::copy_", "aten::clone", "aten::contiguous"}, names
        assert "cuda_matmul_f32::matmul" in names


def test_what_cannot_broadcast_is_refused():
    with pytest.raises(ValueError, match=r"batches of a, \(2,\), and of b, \(3,\), do not broad"):
        matmul(torch.ones(2, 3, 4), torch.ones(3, 4, 5))
    with pytest.raises(ValueError, match=r"a \(2, 3, 4\) has 4 columns but b \(5,\) has 5 rows"):
        matmul(torch.ones(2, 3, 4), torch.ones(5))
    with pytest.raises(ValueError, match="b is a single value"):
        matmul(torch.ones(3), torch.tensor(1.0))
