"""Time on the CPU: enough calls a sample that the clock's own cost does not count."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .tensors import Inputs, overwrite, snapshot

SHORTEST_SAMPLE_S = 2e-3
SURELY_LONG_S = 0.05


@dataclass(frozen=True)
class Pace:
    """How an implementation is sampled: calls a sample, and about how long one call takes."""

    function: Callable[..., Any]
    calls: int
    seconds: float
    sample_s: float  # what one sample costs altogether
    state: Any = None  # the timer's own


class Timer(Protocol):
    """One way to take samples; every implementation of a case is timed by the same one."""

    name: str

    def pace(self, function: Callable[..., Any]) -> Pace:
        """Warm up and calibrate."""

    def sample(self, pace: Pace, turn: int, once: bool = False) -> tuple[float, Any]:
        """Return seconds a call, and what the last call returned.

        Args:
            once: a sample that went wrong is not to be taken again.
        """

    def last_set(self, turn: int) -> int:
        """Return which input set the last call of sample `turn` used."""


class InputSets:
    """The inputs that calls take in turn, so that no call finds the last one's in a cache."""

    def __init__(self, sets: Sequence[Inputs], inplace: bool) -> None:
        self.sets = list(sets)
        self.inplace = inplace
        self.pristine = [snapshot(inputs) for inputs in sets] if inplace else []

    def in_turn(self, calls: int, turn: int) -> list[Inputs]:
        """Return inputs for so many calls, of which the last is set `turn`, counted round."""
        return [self.sets[(turn - back) % len(self.sets)] for back in reversed(range(calls))]

    def restore(self) -> None:
        """Undo what in-place calls wrote."""
        for inputs, contents in zip(self.sets, self.pristine, strict=False):
            overwrite(inputs, contents)

    def renewed(self, index: int) -> None:
        """Take the present contents of a set as those to restore."""
        if self.inplace:
            self.pristine[index] = snapshot(self.sets[index])


class CpuTimer:
    """A sample is a loop of at least 2 ms over the input sets, divided by its number of calls.

    Caches stay as warm as such a loop leaves them, for every implementation alike. A function that
    writes to its inputs gets them restored before each sample, so there a sample is one call.
    """

    name = "perf_counter"

    def __init__(self, inputs: InputSets) -> None:
        self.inputs = inputs

    def pace(self, function: Callable[..., Any]) -> Pace:
        """Raise the calls until a sample is long enough; this is the warm-up too."""
        calls = 1
        while True:
            seconds, _ = self._loop(function, calls, 0)
            for _ in range(2):
                # A busy neighbour can make a short loop look long; what is long anyway is not
                # worth repeating.
                if seconds * calls < SURELY_LONG_S:
                    seconds = min(seconds, self._loop(function, calls, 0)[0])
            if self.inputs.inplace or seconds * calls >= SHORTEST_SAMPLE_S:
                return Pace(function, calls, seconds, seconds * calls)
            calls = max(2 * calls, math.ceil(SHORTEST_SAMPLE_S / max(seconds, 1e-7)))

    def sample(self, pace: Pace, turn: int, once: bool = False) -> tuple[float, Any]:
        """Return seconds a call, and what the last call returned."""
        return self._loop(pace.function, pace.calls, turn)

    def last_set(self, turn: int) -> int:
        """Return which input set the last call of sample `turn` used."""
        return turn % len(self.inputs.sets)

    def _loop(self, function: Callable[..., Any], calls: int, turn: int) -> tuple[float, Any]:
        self.inputs.restore()
        order = self.inputs.in_turn(calls, turn)
        returned = None
        start = time.perf_counter()
        for inputs in order:
            returned = function(*inputs)
        return (time.perf_counter() - start) / calls, returned
