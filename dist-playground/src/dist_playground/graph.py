"""A whole training step as one CUDA graph: captured once, then launched at once.

A step of a small batch launches thousands of kernels, each of which Python needs some ten
microseconds for; the GPU waits. A graph replays forward, backward, communication and optimizer
without Python (the collectives of NCCL, and kernels on peer memory, can be captured). The price:
shapes and addresses are fixed, so batches are copied in, and a batch of another shape (the last
one of an epoch) takes the usual way.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dist_playground.strategy import MicroBatch

__all__ = ["GraphedStep"]

Step = Callable[[Sequence[MicroBatch], int], tuple[Tensor, Tensor]]


class GraphedStep:
    """Calls step(micro_batches, total) -> (loss share, norm), after `warm_up` times as a graph.

    The first steps go the usual way: libraries choose kernels, the optimizer makes its moments.
    """

    def __init__(self, step: Step, warm_up: int) -> None:
        self._step = step
        self._warm_up = warm_up
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[MicroBatch] = []
        self._outputs: tuple[Tensor, Tensor] | None = None
        self._shapes: list[torch.Size] = []

    def __call__(self, batches: Sequence[MicroBatch], total: int) -> tuple[Tensor, Tensor]:
        """One step; the results are this call's own."""
        shapes = [batch.tokens.shape for batch in batches]
        self._calls += 1
        if self._calls <= self._warm_up or (self._graph is not None and shapes != self._shapes):
            return self._on_side_stream(batches, total)
        if self._graph is None:
            self._capture(batches, total)
            self._shapes = shapes
        for static, batch in zip(self._inputs, batches, strict=True):
            static.tokens.copy_(batch.tokens)
            static.targets.copy_(batch.targets)
        assert self._graph is not None and self._outputs is not None  # noqa: PT018
        self._graph.replay()
        share, norm = self._outputs
        return share.clone(), norm.clone()

    def _on_side_stream(self, batches: Sequence[MicroBatch], total: int) -> tuple[Tensor, Tensor]:
        # What autograd remembers of the stream that it first ran in must not be the default one.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results = self._step(batches, total)
        torch.cuda.current_stream().wait_stream(stream)
        return results

    def _capture(self, batches: Sequence[MicroBatch], total: int) -> None:
        """Record the step, which is not executed here."""
        self._inputs = [
            MicroBatch(batch.tokens.clone(), batch.targets.clone(), batch.positions)
            for batch in batches
        ]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # Other threads (NCCL's watchdog) may go on asking for the state of earlier events.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._outputs = self._step(self._inputs, total)
        self._graph = graph
