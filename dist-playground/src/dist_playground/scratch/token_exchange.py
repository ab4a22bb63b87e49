"""What tensor-parallel ranks say to each other about tokens, with the gradient of saying it.

The gradient of an all-gather is a reduce-scatter and the other way round: in the forward a rank
gets what others computed, in the backward they get what it found out about it.

In the backward weight gradients wait in a queue (`later`): nothing needs them before the end, so
one of them is computed while each exchange is on its way.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_playground.grid import Axis

__all__ = ["Later", "gather_tokens", "scatter_tokens", "sum_gradient"]

Later = deque[Callable[[], None]]  # work that can be done at any time before the backward ends


def all_gather(x_nD: Tensor, axis: Axis) -> tuple[Tensor, dist.Work | None]:
    """Start bringing [n, D] of every rank together to [N, D]."""
    x_ND = x_nD.new_empty(x_nD.shape[0] * axis.size, *x_nD.shape[1:])
    return x_ND, dist.all_gather_into_tensor(
        x_ND, x_nD.contiguous(), group=axis.group, async_op=True
    )


def reduce_scatter(x_ND: Tensor, axis: Axis) -> tuple[Tensor, dist.Work | None]:
    """Start summing [N, D] of every rank; this one gets its [n, D] of the sum."""
    x_nD = x_ND.new_empty(x_ND.shape[0] // axis.size, *x_ND.shape[1:])
    return x_nD, dist.reduce_scatter_tensor(
        x_nD, x_ND.contiguous(), group=axis.group, async_op=True
    )


def _finish(started: tuple[Tensor, dist.Work | None], later: Later | None = None) -> Tensor:
    tensor, work = started
    if later:
        later.popleft()()
    if work is not None:
        work.wait()
    return tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_nD: Tensor, axis: Axis, later: Later) -> Tensor:
        ctx.axis, ctx.later = axis, later
        return _finish(all_gather(x_nD, axis))

    @staticmethod
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, None, None]:
        return _finish(reduce_scatter(dy_ND, ctx.axis), ctx.later), None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, axis: Axis, later: Later) -> Tensor:
        ctx.axis, ctx.later = axis, later
        return _finish(reduce_scatter(x_ND, axis))

    @staticmethod
    def backward(ctx: Any, dy_nD: Tensor) -> tuple[Tensor, None, None]:
        return _finish(all_gather(dy_nD, ctx.axis), ctx.later), None, None


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        dy = dy.float()  # a sum of W parts, each of them a sum over tokens already
        dist.all_reduce(dy, group=ctx.axis.group)
        return dy, None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gather_tokens(x_nD: Tensor, axis: Axis, later: Later) -> Tensor:
    """All ranks' tokens, in order of rank: [n, D] -> [N, D]."""
    if axis.group is None:
        return x_nD
    y_ND: Tensor = _Gather.apply(x_nD, axis, later)  # type: ignore[no-untyped-call]
    return y_ND


@torch.compiler.disable  # type: ignore[untyped-decorator]
def scatter_tokens(x_ND: Tensor, axis: Axis, later: Later) -> Tensor:
    """The sum over the ranks of partial results, this rank's tokens of it: [N, D] -> [n, D]."""
    if axis.group is None:
        return x_ND
    y_nD: Tensor = _Scatter.apply(x_ND, axis, later)  # type: ignore[no-untyped-call]
    return y_nD


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sum_gradient(x: Tensor, axis: Axis) -> Tensor:
    """The same tensor; its gradient, a part on each rank, is summed over the axis."""
    if axis.group is None:
        return x
    y: Tensor = _SumGradient.apply(x, axis)  # type: ignore[no-untyped-call]
    return y
