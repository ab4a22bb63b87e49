"""matmul(..., out=): every layout is written right and in full, and nothing around it."""

from __future__ import annotations

import pytest
import torch
from cuda_matmul_f32 import matmul

NAN = float("nan")

# From a shape to an `out` of that shape, and the tensor that it is a part of.
LAYOUTS = {
    "contiguous": lambda *shape: ((x := torch.full(shape, NAN)), x),
    "transposed": lambda *shape: ((x := torch.full((*shape[:-2], *shape[:-3:-1]), NAN)).mT, x),
    "wide_rows": lambda *s: ((x := torch.full((*s[:-1], s[-1] + 5), NAN))[..., 2:-3], x),
    "odd_rows_of_taller": lambda *s: (
        (x := torch.full((*s[:-2], 2 * s[-2], s[-1]), NAN))[..., 1::2, :],
        x,
    ),
    "every_other_column": lambda *s: ((x := torch.full((*s[:-1], 2 * s[-1]), NAN))[..., ::2], x),
    "offset_transposed": lambda *s: (
        (x := torch.full((*s[:-2], s[-1] + 1, s[-2] + 3), NAN))[..., 1:, 2:-1].mT,
        x,
    ),
}
SHAPES = [(1, 1, 1), (33, 17, 40), (130, 129, 67), (1, 70, 5), (70, 1, 5), (9, 8, 0), (0, 5, 3)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [(), (3,)], ids=["matrix", "batch"])
def test_every_layout_is_written_and_nothing_around_it(rung, shape, batch, layout):
    m, n, k = shape
    a, b = rung.integers(*batch, m, k), rung.integers(*batch, k, n, seed=1)
    out, whole = (x.to(rung.device) for x in LAYOUTS[layout](*batch, m, n))
    # .to(a GPU) copied: take the view anew.
    out = whole.as_strided(out.shape, *_place(LAYOUTS[layout], *batch, m, n))
    before = (~whole.isnan()).sum()
    assert rung(a, b, out=out) is out
    assert torch.equal(out.cpu(), rung.exact(a, b))
    assert before == 0
    assert (~whole.isnan()).sum() == out.numel()


def _place(layout, *shape):
    out, _ = layout(*shape)
    return out.stride(), out.storage_offset()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((5,), (5,)),
        ((3, 5), (5,)),
        ((5,), (2, 5, 4)),
        ((2, 6, 3, 5), (5, 4)),
        ((2, 6, 3, 5), (6, 5, 4)),
        ((2, 6, 3, 5), (5,)),
        ((0, 3, 5), (5, 4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("reverse", [False, True], ids=["contiguous", "reversed"])
def test_broadcast_results_go_there_too(auto, a, b, reverse):
    a, b = auto.integers(*a), auto.integers(*b, seed=1)
    expected = auto.exact(a, b)
    out = torch.full_like(expected, NAN, device=auto.device)
    if reverse:  # dimensions in the opposite order in memory: nothing can be viewed as one
        order = tuple(reversed(range(out.dim())))
        out = out.permute(order).contiguous().permute(order)
    assert auto(a, b, out=out) is out
    assert torch.equal(out.cpu(), expected)


def test_slices_of_one_tensor_that_share_no_element(rung):
    whole = rung.integers(40, 60)
    a, b = whole[:, :30], whole[:30, 30:45]
    expected = rung.exact(a, b)
    rung(a, b, out=whole[:, 45:])
    assert torch.equal(whole[:, 45:].cpu(), expected)


@pytest.mark.parametrize(
    ("out", "error", "says"),
    [
        (torch.empty(3, 6), ValueError, r"out (3, 6) must have the result's shape (3, 5)"),
        (torch.empty(0), ValueError, r"out (0,) must have the result's shape (3, 5)"),
        (torch.empty(3, 5).double(), TypeError, "out must be float32, not Double"),
        (torch.empty(3, 5, device="meta"), ValueError, "out is on meta but a on cpu"),
        (torch.empty(3, 1).expand(3, 5), RuntimeError, "elements that share memory"),
        (torch.empty(7).as_strided((3, 5), (1, 1)), RuntimeError, "elements that share memory"),
        (torch.empty(3, 5).to_sparse(), TypeError, "out must be a dense tensor"),
        (torch.empty(3, 5, requires_grad=True), RuntimeError, "leave out= away"),
        ("no tensor", RuntimeError, "'Tensor' for argument 'out'"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(out, error, says):
    with pytest.raises(error) as caught:
        matmul(torch.ones(3, 4), torch.ones(4, 5), out=out)
    assert says in str(caught.value)


def test_a_batchs_out_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"out \(3, 5\) must have the result's shape \(2, 3, 5\)"):
        matmul(torch.ones(2, 3, 4), torch.ones(4, 5), out=torch.empty(3, 5))


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.t(), lambda x: x.view(9, 9)])
def test_an_out_that_is_an_input_is_refused(auto, view):
    x, other = auto.integers(9, 9), auto.integers(9, 9, seed=1)
    kept = x.clone()
    for a, b in ((x, other), (other, x), (x, x)):
        with pytest.raises(RuntimeError, match="out shares memory with a or b"):
            auto(a, b, out=view(x))
    assert torch.equal(x, kept)


def test_gradients_through_out_are_refused_and_forbidden_ones_do_not_matter(auto):
    a, b = auto.integers(3, 4).requires_grad_(), auto.integers(4, 5, seed=1)
    out = torch.empty(3, 5, device=auto.device)
    with pytest.raises(RuntimeError, match="out= does not support automatic differentiation"):
        auto(a, b, out=out)
    with torch.no_grad():
        auto(a, b, out=out)
    assert torch.equal(out.cpu(), auto.exact(a, b))


def test_autograd_notices_that_out_was_written(auto):
    x, out = auto.integers(3, 5).requires_grad_(), auto.integers(3, 5, seed=1)
    y = x * out  # keeps out for the gradient
    auto(auto.integers(3, 4), auto.integers(4, 5), out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
