"""Gradients of every order, against finite differences and against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from custom_gelu_ext import build_info, gelu
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

pytestmark = pytest.mark.skipif(build_info.module is None, reason=build_info.missing)


def points(*shape: int, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return x.to(device).requires_grad_()


@pytest.mark.parametrize("shape", [(), (0,), (13,), (3, 5)])
def test_gradcheck(device, approximate, shape):
    def function(x: Tensor) -> Tensor:
        return gelu(x, approximate)

    x = points(*shape, device=device)
    batched = 0 not in shape  # torch's check of batched gradients needs an element
    assert gradcheck(
        function,
        (x,),
        check_forward_ad=True,
        check_batched_grad=batched,
        check_batched_forward_grad=batched,
    )
    assert gradgradcheck(function, (x,), check_fwd_over_rev=True)


def test_gradcheck_through_strides(device, approximate):
    x = points(4, 6, device=device)
    assert gradcheck(lambda x: gelu(x.t()[::2, 1:], approximate), (x,))
    assert gradgradcheck(lambda x: gelu(x.t()[::2, 1:], approximate), (x,))


def test_gradcheck_of_the_backward_operator(device, approximate):
    grad, x = points(7, device=device), points(7, device=device, seed=1)
    backward = torch.ops.custom_gelu_ext.gelu_backward
    assert gradcheck(lambda grad, x: backward(grad, x, approximate), (grad, x))
    assert gradcheck(lambda grad: backward(grad, x.detach(), approximate), (grad,))
    assert gradcheck(lambda x: backward(grad.detach(), x, approximate), (x,))


def test_derivatives_of_order_one_to_four(device, approximate):
    x = points(200, device=device)
    ours, theirs = gelu(x, approximate), F.gelu(x, approximate=approximate)
    for _ in range(4):
        (ours,) = torch.autograd.grad(ours.sum(), x, create_graph=True)
        (theirs,) = torch.autograd.grad(theirs.sum(), x, create_graph=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [1e4, -1e4, float("inf"), -float("inf")])
def test_second_derivative_far_out_is_zero(device, approximate, value):
    x = torch.tensor([value], dtype=torch.float64, device=device, requires_grad=True)
    (first,) = torch.autograd.grad(gelu(x, approximate), x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    assert second.item() == 0.0


def test_gradients_of_all_dtypes(device, dtype, approximate):
    x = points(1000, device=device).detach().to(dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    (first,) = torch.autograd.grad(gelu(x, approximate).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    expected = F.gelu(wide, approximate=approximate).sum()
    (expected_first,) = torch.autograd.grad(expected, wide, create_graph=True)
    (expected_second,) = torch.autograd.grad(expected_first.sum(), wide)
    assert first.dtype == second.dtype == dtype
    tolerance = 16 * torch.finfo(dtype).eps
    for got, right in ((first, expected_first), (second, expected_second)):
        torch.testing.assert_close(got.double(), right, rtol=tolerance, atol=tolerance)


def test_training_a_small_network_follows_torch(device, approximate):
    def losses(activation) -> list[float]:
        torch.manual_seed(0)
        first, last = torch.nn.Linear(8, 32).to(device), torch.nn.Linear(32, 1).to(device)
        parameters = [*first.parameters(), *last.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        x = torch.randn(64, 8).to(device)
        found = []
        for _ in range(20):
            loss = (last(activation(first(x))) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    ours = losses(lambda x: gelu(x, approximate))
    theirs = losses(lambda x: F.gelu(x, approximate=approximate))
    assert ours[-1] < ours[0] / 2
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_nothing_is_saved_without_a_gradient(device):
    x = points(5, device=device)
    with torch.no_grad():
        assert not gelu(x).requires_grad
    with torch.inference_mode():
        assert gelu(x).is_inference()
    assert gelu(x).requires_grad


def test_a_changed_input_is_noticed_in_backward(device):
    x = points(5, device=device)
    source = x * 1
    y = gelu(source)
    source.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
