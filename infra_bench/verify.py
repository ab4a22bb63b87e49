"""Whether an implementation does the work: checked around every call that counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .case import Case, Implementation
from .error import RefusalError, relative_error
from .tensors import (
    Inputs,
    outputs_of,
    overwrite,
    poison,
    same_bits,
    share_memory,
    snapshot,
    spoil,
    upcast,
)


class Examiner:
    """Holds inputs and the right answer for their present contents, and examines calls on them.

    One right answer at a time, that of `expect`: in float64 it may be the largest tensor of all.
    """

    def __init__(
        self,
        case: Case,
        inputs: Inputs,
        device: torch.device,
        draw: Callable[[], Inputs] | None = None,
    ) -> None:
        self.case = case
        self.inputs = inputs
        self.device = device
        self.renew(draw)

    def renew(self, draw: Callable[[], Inputs] | None = None) -> None:
        """Put other contents, which `draw` returns, into the same buffers.

        Without `draw`, take what the buffers hold now.
        """
        # Large inputs leave no room for the old contents and answers beside the new ones.
        self.contents: Inputs = ()
        self.expected: Inputs = ()
        self.reference: Callable[..., Any] | None = None
        if draw is not None:
            overwrite(self.inputs, draw())
        self.contents = snapshot(self.inputs)

    def expect(self, implementation: Implementation) -> None:
        """Compute what is right for this implementation, which the coming calls are judged by.

        Raises TypeError where its reference returns something else than float64 results.
        """
        reference = implementation.reference or self.case.reference
        if reference is self.reference:
            return
        self.expected, self.reference = (), None
        overwrite(self.inputs, self.contents)  # a timed call in place has left others
        expected = outputs_of(reference(*upcast(self.inputs)))
        whose = f"case {self.case.name!r}: the reference"
        if implementation.reference is not None:
            whose += f" of {implementation.name!r}"
        if expected is None:
            raise TypeError(f"{whose} returned no tensor and no tuple of tensors")
        for each in expected:
            if each.is_floating_point() and each.dtype != torch.float64:
                raise TypeError(
                    f"{whose} returned {each.dtype}; compute it in float64, as its inputs are"
                )
        self.expected = tuple(each.detach() for each in expected)
        self.reference = reference

    def dtype_of(self, expected: Tensor) -> torch.dtype:
        """Return the dtype that an output has to have."""
        if not expected.is_floating_point():
            return expected.dtype
        floating = [each.dtype for each in self.inputs if each.is_floating_point()]
        return self.case.dtype or (floating[0] if floating else torch.float32)

    def call(self, function: Callable[..., Any]) -> tuple[Inputs, float]:
        """Call on poisoned memory; return outputs and error, or raise RefusalError."""
        between = self.poison()
        # Whether work is in order with the current stream is check_streams's question, not this.
        self.wait()
        returned = function(*self.inputs)
        self.wait()
        del between
        outputs = outputs_of(returned)
        if outputs is None:
            raise RefusalError(f"returns {type(returned).__name__}, not a tensor or tensors")
        try:
            error = self.judge(outputs)
        finally:
            if self.case.inplace:
                overwrite(self.inputs, self.contents)
        return outputs, error

    def poison(self, release: bool = True) -> list[Tensor]:
        """Make sure that no free memory holds a right answer; hold the result during the call."""
        dtypes = [self.dtype_of(each) for each in self.expected]
        return poison(self.expected, dtypes, self.device, release)

    def wait(self) -> None:
        """Let the device finish everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def judge(self, outputs: Inputs) -> float:
        """Return the error of outputs for the present contents, or raise RefusalError."""
        copies = snapshot(outputs)  # first of all: a thread that still writes is not waited for
        try:
            return self._compare(outputs, copies)
        finally:
            spoil(copies)
            if not share_memory(outputs, self.inputs):
                spoil(outputs)

    def _compare(self, outputs: Inputs, copies: Inputs) -> float:
        self._check_form(outputs)
        if not self.case.inplace:
            if share_memory(outputs, self.inputs):
                raise RefusalError("its output shares memory with an input")
            if not same_bits(self.inputs, self.contents):
                overwrite(self.inputs, self.contents)  # so that the next one is judged fairly
                raise RefusalError("changes its inputs")
        error = max(
            (relative_error(a, b) for a, b in zip(copies, self.expected, strict=True)), default=0.0
        )
        # Never `error > tolerance`: that is False for NaN, and would let it pass.
        if not error <= self.case.tolerance:
            raise RefusalError(
                f"relative error {error:.3g} is above the tolerance {self.case.tolerance:.3g}"
            )
        return error

    def _check_form(self, outputs: Inputs) -> None:
        if len(outputs) != len(self.expected):
            raise RefusalError(f"returns {len(outputs)} tensors, not {len(self.expected)}")
        for got, want in zip(outputs, self.expected, strict=True):
            if type(got) not in (Tensor, torch.nn.Parameter):
                raise RefusalError(
                    f"returns a {type(got).__name__}: a subclass of Tensor may put off its work"
                )
            if got.shape != want.shape:
                raise RefusalError(f"output shape is {tuple(got.shape)}, not {tuple(want.shape)}")
            if got.dtype != self.dtype_of(want):
                raise RefusalError(f"output dtype is {got.dtype}, not {self.dtype_of(want)}")
            if got.device.type != self.device.type:
                raise RefusalError(f"output is on {got.device}, not on {self.device}")
