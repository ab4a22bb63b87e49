"""A bucket: consecutive parameters whose gradients lie one after another in one float32 buffer.

One collective then sums them all, and nothing is copied on the way: the weight gradient of a
matrix is a product, and the product's output is the buffer itself. Autograd would give it in the
matrix's own precision to `.grad`, from where it had to be converted and copied.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_playground.model import Linear
from dist_playground.scratch.operator import known, number_of, operator
from dist_playground.scratch.token_exchange import Later

__all__ = ["Bucket", "layout", "matrices", "padded"]

ALIGNMENT = 8  # parameters begin at multiples of so many numbers: 16 bytes in bfloat16


def layout(parameters: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where each parameter begins in a flat vector, and the vector's length."""
    starts, end = [], 0
    for parameter in parameters:
        starts.append(end)
        end += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
    return starts, end


def padded(numel: int, parts: int) -> int:
    """The length that divides into `parts` aligned ones."""
    return -(-numel // (ALIGNMENT * parts)) * ALIGNMENT * parts


def matrices(module: nn.Module) -> list[Linear]:
    """The trained matrices that belong to one module alone.

    One that is used under two names (tied weights) is left to autograd, which adds up its parts
    and says once when all of them have come.
    """
    owners = Counter(id(p) for m in module.modules() for p in m._parameters.values())
    return [
        m
        for m in module.modules()
        if isinstance(m, Linear) and m.weight.requires_grad and owners[id(m.weight)] == 1
    ]


class Bucket:
    """Collects the gradients of some parameters; says when the last of them is complete.

    `allocate()` gives the flat float32 buffer when the first gradient comes, `complete(bucket)`
    is called when every parameter has its gradient and `armed()` says that no more will be added.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        allocate: "Callable[[Bucket], Tensor]",
        complete: "Callable[[Bucket], None]",
        armed: Callable[[], bool],
        later: Later | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self.starts, self.numel = layout(self.parameters)
        self._allocate = allocate
        self._complete = complete
        self.buffer: Tensor | None = None
        self._views: list[Tensor] = []
        self.written = [False] * len(self.parameters)
        self._expected = [0] * len(self.parameters)  # products still to come in this backward
        self._left = len(self.parameters)
        self._armed = armed
        self._later = later  # where products wait, rather than be computed at once
        for index, parameter in enumerate(self.parameters):
            parameter.register_post_accumulate_grad_hook(self._hook(index))  # type: ignore[no-untyped-call]

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        # Held by the parameter, where Python's garbage collector cannot follow: were it to hold
        # the bucket, and that the parameter, neither would ever be freed.
        bucket = weakref.ref(self)

        def take(parameter: Tensor) -> None:
            mine = bucket()
            # Without a gradient it is a matrix: its product came, or will come, by itself.
            if mine is not None and parameter.grad is not None:
                mine.add(index, parameter.grad)
                parameter.grad = None

        return take

    def add(self, index: int, gradient: Tensor) -> None:
        """Add all of this backward's gradient of parameter `index`."""
        if self.written[index]:
            self.view(index).add_(gradient)
        else:
            self.view(index).copy_(gradient)
        self._done(index)

    def view(self, index: int) -> Tensor:
        """The gradient of parameter `index`, float32 in the parameter's shape."""
        if self.buffer is None:
            self.buffer = self._allocate(self)
            self._views = [
                self.buffer[start : start + p.numel()].view(p.shape)
                for start, p in zip(self.starts, self.parameters, strict=True)
            ]
        return self._views[index]

    def expect(self, index: int) -> None:
        """A forward used the parameter in a product whose backward will come."""
        self._expected[index] += 1

    def take_product(self, index: int, dy_NO: Tensor, x_NI: Tensor) -> None:
        """Add dy^T x to the gradient of parameter `index`, now or when `later` is worked off."""
        if self._later is None:
            self.add_product(index, dy_NO, x_NI)
        else:
            self._later.append(partial(self.add_product, index, dy_NO, x_NI))

    @torch.no_grad()
    def add_product(self, index: int, dy_NO: Tensor, x_NI: Tensor) -> None:
        """Add dy^T x to the gradient [O, I] of parameter `index`."""
        out_OI = self.view(index)
        if not dy_NO.is_cuda and dy_NO.dtype != out_OI.dtype:  # no such product on the CPU
            dy_NO, x_NI = dy_NO.float(), x_NI.float()
        if dy_NO.dtype == out_OI.dtype:
            torch.addmm(out_OI, dy_NO.T, x_NI, beta=int(self.written[index]), out=out_OI)
        elif self.written[index]:
            out_OI += torch.mm(dy_NO.T, x_NI, out_dtype=out_OI.dtype)
        else:
            torch.mm(dy_NO.T, x_NI, out_dtype=out_OI.dtype, out=out_OI)
        self._expected[index] -= 1
        if self._expected[index] == 0:
            self._done(index)
        else:
            self.written[index] = True

    def _done(self, index: int) -> None:
        self.written[index] = True
        if not self._armed():
            return
        self._left -= 1
        if self._left == 0:
            self._complete(self)

    def zero_missing(self) -> None:
        """Parameters that the loss did not depend on have gradient 0, here and in padding."""
        for index, written in enumerate(self.written):
            if not written:
                self.view(index).zero_()

    def reset(self) -> None:
        """Be ready for the next backward pass over the whole model."""
        self.written = [False] * len(self.parameters)
        self._expected = [0] * len(self.parameters)
        self._left = len(self.parameters)

    def drop(self) -> None:
        """Forget the buffer: the next gradient allocates another one."""
        self.buffer, self._views = None, []

    def take_products_of(self, linears: Sequence[Linear]) -> None:
        """Let those matrices that are in this bucket write their gradient straight into it."""
        places = {id(parameter): index for index, parameter in enumerate(self.parameters)}
        for linear in linears:
            if id(linear.weight) in places:
                linear.__class__ = BucketLinear
                assert isinstance(linear, BucketLinear)
                linear.bucket, linear.index = self, places[id(linear.weight)]
                linear.number = number_of(linear)


class BucketLinear(Linear):
    """A matrix whose weight gradient goes to a bucket, and only its input's to autograd."""

    bucket: Bucket
    index: int
    number: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs] in the weight's dtype."""
        x = x.to(self.weight.dtype)
        if not torch.is_grad_enabled():
            return F.linear(x, self.weight)
        if not torch.compiler.is_compiling():
            return _Product.apply(x, self.weight, self)  # type: ignore[no-any-return, no-untyped-call]
        # Where x needs no gradient the compiler would drop it, and the weight's with it.
        y: Tensor = product(x, self.weight, self.number) if x.requires_grad else self._untraced(x)
        return y

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _untraced(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.weight, self)  # type: ignore[no-any-return, no-untyped-call]

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product; its gradient will come."""
        self.bucket.expect(self.index)
        return F.linear(x, weight)

    def take(self, dy: Tensor, x: Tensor) -> None:
        """Its weight's gradient."""
        self.bucket.take_product(self.index, dy.flatten(0, -2), x.flatten(0, -2))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, linear: BucketLinear) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.linear = linear
        return linear.multiply(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        ctx.linear.take(dy, x)
        return dx, None, None


# The same for torch.compile. That the gradient of x brings the weight's along is not its business.


def _gradient(dy: Tensor, x: Tensor, weight: Tensor, number: Tensor) -> Tensor:
    dx = dy @ weight
    known(number).take(dy, x)
    return dx


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
    return product_gradient(dy, *ctx.saved_tensors), None, None


product_gradient = operator(
    "product_gradient(Tensor dy, Tensor x, Tensor weight, Tensor linear) -> Tensor",
    _gradient,
    lambda dy, x, weight, number: torch.empty_like(x, memory_format=torch.contiguous_format),
)
product = operator(
    "product(Tensor x, Tensor weight, Tensor linear) -> Tensor",
    lambda x, weight, number: known(number).multiply(x, weight),
    lambda x, weight, number: x.new_empty(*x.shape[:-1], weight.shape[0]),
    _backward,
)
