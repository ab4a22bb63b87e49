"""Time on a GPU: CUDA events around one call on a cold L2, or a graph replay of many calls."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .tensors import outputs_of, share_memory, spoil
from .timing import SHORTEST_SAMPLE_S, InputSets, Pace

SHORT_CALL_S = 20e-6  # below this the launch and the events themselves are what one would time
GRAPH_S = 200e-6
MOST_GRAPH_CALLS = 256
MOST_EAGER_CALLS = 1000
MOST_SETS = 32
MOST_TAKES = 4


class Flush:
    """A buffer of twice the L2: writing it pushes everything else out, and keeps the GPU busy."""

    def __init__(self, device: torch.device) -> None:
        self.l2 = int(torch.cuda.get_device_properties(device).L2_cache_size) or 64 << 20
        self.buffer = torch.empty(2 * self.l2, dtype=torch.uint8, device=device)
        self.seconds = statistics.median(self._time() for _ in range(10))

    def write(self, at_least_s: float = 0.0) -> None:
        """Enqueue one write, or as many as keep the stream busy for about `at_least_s`."""
        for _ in range(max(1, math.ceil(at_least_s / self.seconds))):
            self.buffer.zero_()

    def timed(
        self,
        function: Callable[..., Any],
        *inputs: Any,
        lead_s: float = 0.0,
        before: Callable[[], None] = lambda: None,
        once: bool = False,
    ) -> tuple[float, Any]:
        """Return the seconds of a call on a cold L2, enqueued while the GPU still writes.

        Had the GPU been through with that before all of the call was enqueued, because the
        processor was busy elsewhere, the events would stand apart by what the host took. Then the
        call is taken again with a longer lead; a few times only, since one that waits for the GPU
        itself is always late.

        Args:
            lead_s: for how long the GPU is kept busy at least.
            before: is called before each take.
            once: take it as it comes. A second take finds the contents of the first, whose answer
                a cheat may have kept; so no take that is examined may be one.
        """
        left = 1 if once else MOST_TAKES
        while True:
            before()
            self.write(lead_s)
            seconds, returned, is_late = _timed(function, *inputs)
            left -= 1
            if left == 0 or not is_late:
                return seconds, returned
            outputs = outputs_of(returned) or ()
            if not share_memory(outputs, inputs):
                spoil(outputs)
            del returned, outputs
            lead_s = 2 * max(lead_s, self.seconds)

    def _time(self) -> float:
        return max(timed(self.buffer.zero_)[0], 1e-6)


def timed(function: Callable[..., Any], *inputs: Any) -> tuple[float, Any]:
    """Return the seconds between two events around a call, and what it returned."""
    return _timed(function, *inputs)[:2]


def _timed(function: Callable[..., Any], *inputs: Any) -> tuple[float, Any, bool]:
    """As `timed`; and whether the GPU had begun before all was enqueued, the end event too."""
    start, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    start.record()
    returned = function(*inputs)
    end.record()
    has_begun = bool(start.query())  # type: ignore[no-untyped-call]
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3, returned, has_begun


class EventTimer:
    """A sample is the time between two events around one call, L2 flushed before.

    While the GPU still writes the flush buffer, the host enqueues the call: the events then stand
    close around the kernels, without the host's cost of launching them.
    """

    name = "cuda events"

    def __init__(self, inputs: InputSets, flush: Flush) -> None:
        self.inputs = inputs
        self.flush = flush

    def pace(self, function: Callable[..., Any]) -> Pace:
        """Warm up, and learn how long the host takes to launch a call."""
        launches = []
        for turn in range(3):
            self.inputs.restore()
            torch.cuda.synchronize()
            start = time.perf_counter()
            function(*self.inputs.sets[turn % len(self.inputs.sets)])
            launches.append(time.perf_counter() - start)
        # A call that waits for the GPU itself would ask for an endless lead: 2 ms is plenty.
        lead = min(2 * statistics.median(launches), 2e-3)
        pace = Pace(function, 1, 0.0, 0.0, state=lead)
        begin = time.perf_counter()
        seconds = statistics.median(self.sample(pace, turn)[0] for turn in range(3))
        return replace(pace, seconds=seconds, sample_s=(time.perf_counter() - begin) / 3)

    def sample(self, pace: Pace, turn: int, once: bool = False) -> tuple[float, Any]:
        """Return seconds a call, and what the call returned."""
        (inputs,) = self.inputs.in_turn(1, turn)
        return self.flush.timed(
            pace.function, *inputs, lead_s=pace.state, before=self.inputs.restore, once=once
        )

    def last_set(self, turn: int) -> int:
        """Return which input set sample `turn` used."""
        return turn % len(self.inputs.sets)


class EagerTimer:
    """A sample is a loop of calls between two events, launched one by one as a program does it.

    Where the host takes longer to launch a call than the GPU to run it, the host is what counts.
    The calls take the input sets in turn; where they write to these, a sample is one call.
    """

    name = "cuda events, eager"

    def __init__(self, inputs: InputSets) -> None:
        self.inputs = inputs

    def pace(self, function: Callable[..., Any]) -> Pace:
        """Warm up, and choose as many calls as make a sample long enough."""
        pace = Pace(function, 1, 0.0, 0.0)
        seconds = min(self.sample(pace, turn)[0] for turn in range(4))
        most = 1 if self.inputs.inplace else MOST_EAGER_CALLS
        calls = max(1, min(math.ceil(SHORTEST_SAMPLE_S / max(seconds, 1e-7)), most))
        return Pace(function, calls, seconds, seconds * calls + 50e-6)

    def sample(self, pace: Pace, turn: int, once: bool = False) -> tuple[float, Any]:
        """Return seconds a call, and what the last call returned."""
        self.inputs.restore()
        order = self.inputs.in_turn(pace.calls, turn)

        def loop() -> Any:
            returned = None
            for inputs in order:
                returned = pace.function(*inputs)
            return returned

        torch.cuda.synchronize()
        seconds, returned = timed(loop)
        return seconds / pace.calls, returned

    def last_set(self, turn: int) -> int:
        """Return which input set the last call of sample `turn` used."""
        return turn % len(self.inputs.sets)


class GraphTimer:
    """A sample is the replay of a CUDA graph of many calls, divided by their number.

    The calls take the input sets in turn. These together are larger than the L2 where that takes
    no more than 32 sets; smaller problems run from the L2, for every implementation alike.
    """

    name = "cuda graph"

    def __init__(self, inputs: InputSets, flush: Flush) -> None:
        self.inputs = inputs
        self.flush = flush

    def pace(self, function: Callable[..., Any]) -> Pace:
        """Capture the calls; RuntimeError where the function cannot be captured."""
        sets = len(self.inputs.sets)
        _check_no_wait(function, *self.inputs.sets[0])
        pace = self._capture(function, sets)
        rounds = math.ceil(GRAPH_S / (max(pace.seconds, 1e-7) * sets))
        calls = sets * max(1, min(rounds, MOST_GRAPH_CALLS // sets))
        return pace if calls == sets else self._capture(function, calls)

    def sample(self, pace: Pace, turn: int, once: bool = False) -> tuple[float, Any]:
        """Return seconds a call, and what the last call returned."""
        graph, returned = pace.state
        return self.flush.timed(graph.replay, once=once)[0] / pace.calls, returned

    def last_set(self, turn: int) -> int:
        """Return 0: the order of the sets is fixed in the graph."""
        return 0

    def _capture(self, function: Callable[..., Any], calls: int) -> Pace:
        graph = torch.cuda.CUDAGraph()
        # Every output is kept to the end of the capture: freed, it would be the next one's memory,
        # and the calls would write one small buffer that never leaves the L2.
        kept = []
        stream = torch.cuda.current_stream()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph):
                for inputs in self.inputs.in_turn(calls, 0):
                    kept.append(function(*inputs))
        finally:
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own stream current
        pace = Pace(function, calls, 0.0, 0.0, state=(graph, kept[-1]))
        seconds = statistics.median(self.sample(pace, 0)[0] for _ in range(4))
        sample_s = seconds * calls + self.flush.seconds + 50e-6
        return replace(pace, seconds=seconds, sample_s=sample_s)


def _check_no_wait(function: Callable[..., Any], *inputs: Any) -> None:
    """Raise RuntimeError where a call waits for the GPU, which cannot be captured.

    A failed capture leaves torch's allocator in disorder, so this is found out without one.
    """
    torch.cuda.set_sync_debug_mode("error")
    try:
        function(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
