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
from dist_playground.scratch.operator import known, number_of, operator
from dist_playground.scratch.peer_memory import PeerMemory
from dist_playground.scratch.single_tensor import all_gather, reduce_scatter

__all__ = ["Exchange", "Later", "gather_tokens", "scatter_tokens", "sum_gradient"]

Later = deque[Callable[[], None]]  # work that can be done at any time before the backward ends


class Exchange:
    """The tensor axis, the work that waits for an exchange, and a quicker way for small tensors."""

    def __init__(self, axis: Axis, device: torch.device) -> None:
        self.axis = axis
        self.later = Later()
        self.number = number_of(self)
        self._peers = PeerMemory.if_possible(axis, device)

    def all_reduce(self, x: Tensor, maximum: bool = False) -> None:
        """Replace x by its sum, or largest value, over the axis."""
        if self._peers is not None and self._peers.fits(x):
            self._peers.all_reduce(x, maximum)
        else:
            op = dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM
            dist.all_reduce(x, op=op, group=self.axis.group)

    def summed(self, x: Tensor) -> Tensor:
        """The sum over the axis as a new tensor, float32."""
        x = x.float().clone()
        self.all_reduce(x)
        return x

    def all_gather(self, x_nD: Tensor) -> Tensor:
        """[n, D] of every rank together: [N, D]."""
        x_ND = x_nD.new_empty(x_nD.shape[0] * self.axis.size, *x_nD.shape[1:])
        return self._arrived(x_ND, all_gather(x_ND, x_nD.contiguous(), self.axis.group))

    def reduce_scatter(self, x_ND: Tensor) -> Tensor:
        """The sum of every rank's [N, D], of which this one gets its [n, D]."""
        x_nD = x_ND.new_empty(x_ND.shape[0] // self.axis.size, *x_ND.shape[1:])
        return self._arrived(x_nD, reduce_scatter(x_nD, x_ND.contiguous(), self.axis.group))

    def _arrived(self, tensor: Tensor, work: dist.Work) -> Tensor:
        if self.later:
            self.later.popleft()()
        work.wait()
        return tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_nD: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.all_gather(x_nD)

    @staticmethod
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.reduce_scatter(dy_ND), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.reduce_scatter(x_ND)

    @staticmethod
    def backward(ctx: Any, dy_nD: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.all_gather(dy_nD), None


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.summed(dy), None


def gather_tokens(x_nD: Tensor, exchange: Exchange) -> Tensor:
    """All ranks' tokens, in order of rank: [n, D] -> [N, D]."""
    if torch.compiler.is_compiling():
        return gather(x_nD, exchange.number, exchange.axis.size)  # type: ignore[no-any-return]
    return _Gather.apply(x_nD, exchange)  # type: ignore[no-any-return, no-untyped-call]


def scatter_tokens(x_ND: Tensor, exchange: Exchange) -> Tensor:
    """The sum over the ranks of partial results, this rank's tokens of it: [N, D] -> [n, D]."""
    if torch.compiler.is_compiling():
        return scatter(x_ND, exchange.number, exchange.axis.size)  # type: ignore[no-any-return]
    return _Scatter.apply(x_ND, exchange)  # type: ignore[no-any-return, no-untyped-call]


def sum_gradient(x: Tensor, exchange: Exchange) -> Tensor:
    """The same tensor; its gradient, a part on each rank, is summed over the axis."""
    if torch.compiler.is_compiling():
        return copy(x, exchange.number)  # type: ignore[no-any-return]
    return _SumGradient.apply(x, exchange)  # type: ignore[no-any-return, no-untyped-call]


# The same for torch.compile, which would otherwise trace the collectives. W ranks.


def _backward_of_gather(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, None, None]:
    return scatter(dy_ND, ctx.saved_tensors[1], *ctx.others), None, None


def _backward_of_scatter(ctx: Any, dy_nD: Tensor) -> tuple[Tensor, None, None]:
    return gather(dy_nD, ctx.saved_tensors[1], *ctx.others), None, None


gather = operator(
    "gather_tokens(Tensor x, Tensor exchange, int W) -> Tensor",
    lambda x_nD, number, W: known(number).all_gather(x_nD),
    lambda x_nD, number, W: x_nD.new_empty(x_nD.shape[0] * W, *x_nD.shape[1:]),
    _backward_of_gather,
)
scatter = operator(
    "scatter_tokens(Tensor x, Tensor exchange, int W) -> Tensor",
    lambda x_ND, number, W: known(number).reduce_scatter(x_ND),
    lambda x_ND, number, W: x_ND.new_empty(x_ND.shape[0] // W, *x_ND.shape[1:]),
    _backward_of_scatter,
)
total = operator(
    "total(Tensor x, Tensor exchange) -> Tensor",
    lambda x, number: known(number).summed(x),
    lambda x, number: x.new_empty(x.shape, dtype=torch.float32),
)
copy = operator(
    "copy_with_summed_gradient(Tensor x, Tensor exchange) -> Tensor",
    lambda x, number: x.clone(),
    lambda x, number: x.new_empty(x.shape),
    lambda ctx, dy: (total(dy, ctx.saved_tensors[1]), None),
)
