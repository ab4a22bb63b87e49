"""The relative error of an output, computed so that no NaN or Inf slips through."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CHUNK = 1 << 24  # elements in float64 at a time: the check must fit beside the measured tensors


class RefusalError(Exception):
    """An implementation's result is wrong: the text is the reason, in one sentence."""


def relative_error(output: Tensor, reference: Tensor) -> float:
    """Return ||output - reference|| / ||reference|| (Frobenius) over the finite reference values.

    Where the reference is NaN or infinite the output has to be the same; where it is finite the
    output has to be. Raises RefusalError otherwise. An all-zero reference gives 0 or inf.
    """
    difference = size = 0.0
    wrong, example = 0, ""
    pieces = zip(
        torch.split(output.detach().reshape(-1), CHUNK),
        torch.split(reference.detach().reshape(-1), CHUNK),
        strict=True,
    )
    for got, want in pieces:
        got, want = got.to(torch.float64), want.to(torch.float64)
        finite = torch.isfinite(want)
        places = _unlike(got, want, finite)
        if len(places) and not wrong:
            first = int(places[0])
            example = f"{float(got[first])} where {float(want[first]):.6g} is right"
        wrong += len(places)
        zero = torch.zeros_like(want)
        difference = math.hypot(difference, _norm(torch.where(finite, got - want, zero)))
        size = math.hypot(size, _norm(torch.where(finite, want, zero)))
    if wrong:
        raise RefusalError(
            f"{wrong} of {output.numel()} values are not finite as the reference's are: {example}"
        )
    if size == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / size


def _unlike(got: Tensor, want: Tensor, finite: Tensor) -> Tensor:
    """Return where one is finite and the other is not, or another kind of not finite."""
    same = (got == want) | (torch.isnan(got) & torch.isnan(want))
    return (~torch.where(finite, torch.isfinite(got), same)).nonzero().reshape(-1)


def _norm(values: Tensor) -> float:
    """Return the 2-norm; scaled by the largest value, so that squares cannot overflow."""
    if values.numel() == 0:
        return 0.0
    largest = float(values.abs().max())
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * float(torch.linalg.vector_norm(values / largest))
