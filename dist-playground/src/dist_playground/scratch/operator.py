"""Functions that torch.compile takes as one operation each, without looking inside.

What a matrix does with its weight gradient and what ranks say to each other is Python with side
effects: traced, it would break a block's graph at every matrix. Registered as an operator, all that
the compiler learns is the result's shape and what to call for the gradient, and a whole block is
one graph. It may not be dropped, though, when nothing uses its result; so a function with a side
effect returns something that is needed.

An operator's arguments are tensors. An object that a function needs is given as the number under
which it is known, in a tensor: a plain number would be compiled into the graph, one for each layer.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["OPTIONS", "known", "number_of", "operator"]

# A function may keep its arguments for later: the compiler must not write other results into them.
OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "allow_buffer_reuse": False,
    "inplace_buffers": False,
}

_library = torch.library.Library("dist_playground", "DEF")  # type: ignore[no-untyped-call]
_known: list[weakref.ref[Any]] = []


def number_of(thing: object) -> Tensor:
    """The number of an object, for an operator's argument; it does not keep the object alive."""
    _known.append(weakref.ref(thing))
    return torch.tensor(len(_known) - 1)


def known(number: Tensor) -> Any:
    """The object of this number."""
    return _known[int(number)]()


def operator(
    schema: str,
    function: Callable[..., Tensor],
    shape: Callable[..., Tensor],
    backward: Callable[..., Any] | None = None,
) -> Any:
    """Register `function` under a schema as in "name(Tensor x) -> Tensor"; gives the operator.

    `shape` makes an empty tensor like the result. `backward(ctx, gradient)` gives the gradients of
    the arguments; it finds tensors in `ctx.saved_tensors`, all else in `ctx.others`.
    """
    name = schema.split("(")[0]
    _library.define(schema)  # type: ignore[no-untyped-call]
    plain = torch.no_grad()(function)
    _library.impl(name, plain, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"dist_playground::{name}", shape, lib=_library)
    if backward is not None:
        torch.library.register_autograd(
            f"dist_playground::{name}", backward, setup_context=_save, lib=_library
        )
    return getattr(torch.ops.dist_playground, name).default


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # All of them: of what is saved a compiled graph keeps only what its backward uses.
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
    ctx.others = [value for value in inputs if not isinstance(value, Tensor)]
