"""Catch work that an implementation leaves on another CUDA stream, where events do not see it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from .cuda import Flush
from .error import RefusalError
from .tensors import Inputs, outputs_of, overwrite, snapshot
from .verify import Examiner

BUSY_S = 2e-3
UNHEARD_S = 50e-6  # the two ways to wait differ by this much without any work left
SHARE = 0.1


def check_streams(examiner: Examiner, function: Callable[..., Any], flush: Flush) -> None:
    """Raise RefusalError unless the call's work is in order with the current stream.

    The examiner's inputs get their contents late, behind 2 ms of other work on the current stream,
    and the output is copied on the current stream right after the call: whoever works on another
    stream without waiting reads old inputs, and whoever does not join it again is copied too early.
    """
    right = examiner.contents
    stale = tuple(each.new_zeros(()).expand_as(each) for each in right)
    overwrite(examiner.inputs, stale)
    between = examiner.poison()
    # Once for nothing: memory that it has to ask the driver for would make the call wait for all
    # streams, and hide what is looked for.
    function(*examiner.inputs)
    overwrite(examiner.inputs, stale)
    torch.cuda.synchronize()
    flush.write(BUSY_S)
    overwrite(examiner.inputs, right)
    returned = function(*examiner.inputs)
    del between
    copies = snapshot(outputs_of(returned) or ())
    torch.cuda.synchronize()
    overwrite(examiner.inputs, right)
    try:
        examiner.judge(copies)
    except RefusalError as wrong:
        examiner.call(function)  # wrong even where nothing overlaps: then that is the reason
        raise RefusalError(
            f"its result is not right on the current stream right after the call ({wrong}): it "
            "works on another stream without waiting for this one, or without joining it again"
        ) from None
    lag, whole = min(_lag(examiner.inputs, function) for _ in range(3))
    overwrite(examiner.inputs, right)  # in-place calls have changed them
    if lag > UNHEARD_S + SHARE * whole:
        raise RefusalError(
            f"the device works on for {lag * 1e6:.0f} us after the current stream is done, of "
            f"{whole * 1e6:.0f} us: it leaves work on another stream"
        )


def _lag(inputs: Inputs, function: Callable[..., Any]) -> tuple[float, float]:
    """Return how much longer than the current stream the device works on calls, and the whole."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    function(*inputs)
    torch.cuda.synchronize()
    # Work left elsewhere piles up over a row of calls, until it is longer than what jitter hides.
    calls = max(3, min(200, int(5e-3 / (time.perf_counter() - start))))
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    start = time.perf_counter()
    for _ in range(calls):
        function(*inputs)
    done.record()
    done.synchronize()
    stream = time.perf_counter()
    torch.cuda.synchronize()
    device = time.perf_counter()
    return device - stream, device - start
