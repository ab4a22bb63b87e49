"""Steps that only decode, as replays of CUDA graphs.

A small model's decode step is hundreds of kernels of a few microseconds each, and Python takes
longer to launch one than the GPU to run it. A CUDA graph is captured once and launched as a whole.
What it has captured is fixed, addresses and shapes: so there is a graph for each of some batch
sizes, smaller batches are padded, and all that differs from step to step is read from one buffer.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mini_llm_server.model.attention import (
    Decodes,
    KernelPagedAttention,
    LayerAttention,
    Span,
)
from mini_llm_server.model.transformer import Llama

_NOTICE_S = 1.0  # a capture that takes longer is told about
_PADDING = [[0], [0], [-1], [0]]  # a token that is written nowhere and attends to nothing


def batch_sizes(most: int) -> list[int]:
    """Return the sizes to capture: 1, 2, 4, 8, then powers of two and their halfway points.

    Padding costs a step little while it is bound by reading weights.
    """
    sizes, size = [], 1
    while size < most:
        sizes.append(size)
        if size >= 16 and size * 3 // 2 < most:
            sizes.append(size * 3 // 2)
        size *= 2
    return [*sizes, most]


def _inputs_in(memory: Tensor, max_num_seqs: int) -> tuple[Tensor, Tensor]:
    """Return the parts of a step's inputs: columns [4, B] and tables [B, blocks].

    The columns are token ids, positions, slots and lengths. Tables come last, so that a small
    batch's inputs are the beginning.
    """
    split = 4 * max_num_seqs
    return memory[:split].view(4, -1), memory[split:].view(max_num_seqs, -1)


@dataclass(frozen=True)
class _Captured:
    """A graph, what it writes, and what it reads that only it knows of and must not be freed."""

    graph: torch.cuda.CUDAGraph
    logits: Tensor
    attend: LayerAttention


class DecodeGraphs:
    """The model's forward over one token of each of up to `max_num_seqs` sequences.

    Captures in the constructor, which takes some milliseconds a graph and says so if it is more
    than a second in all.

    Args:
        attention: the KV cache; nothing is written into it now.
        max_num_seqs: most sequences in a step.
        max_blocks: most blocks in a sequence's table.
    """

    @torch.inference_mode()
    def __init__(
        self, model: Llama, attention: KernelPagedAttention, max_num_seqs: int, max_blocks: int
    ) -> None:
        begin = time.perf_counter()
        self._model = model
        self._attention = attention
        self._max_num_seqs = max_num_seqs
        self._sizes = batch_sizes(max_num_seqs)
        host = torch.zeros(max_num_seqs * (4 + max_blocks), dtype=torch.int64, pin_memory=True)
        self._host, self._inputs = host, torch.zeros_like(host, device=model.device)
        # The host's side by way of numpy, which is faster than torch at taking lists in.
        columns, tables = _inputs_in(host, max_num_seqs)
        self._columns, self._tables = columns.numpy(), tables.numpy()
        self._in_tables: list[list[int]] = [[] for _ in range(max_num_seqs)]
        with torch.cuda.device(model.device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
            # The largest first: the others then fit into its memory.
            self._captured = {size: self._capture(size) for size in reversed(self._sizes)}
        seconds = time.perf_counter() - begin
        if seconds > _NOTICE_S:
            what = f"captured {len(self._sizes)} CUDA graphs in {seconds:.1f} s"
            print(f"{what} (--no-cuda-graphs starts without)", file=sys.stderr, flush=True)

    def run(self, token_ids: Sequence[int], spans: Sequence[Span]) -> Tensor:
        """Return the logits [len(spans), vocab] of one token of each span.

        They lie in memory that the next call overwrites, and the inputs in a buffer that it fills:
        what was made of these logits has to be on the CPU by then, or copied.
        """
        size = self._sizes[bisect_left(self._sizes, len(spans))]
        used = self._fill(size, token_ids, spans)
        self._inputs[:used].copy_(self._host[:used], non_blocking=True)
        captured = self._captured[size]
        captured.graph.replay()
        return captured.logits[: len(spans)]

    def _fill(self, size: int, token_ids: Sequence[int], spans: Sequence[Span]) -> int:
        """Write a step's inputs, padded to `size` sequences; return how many numbers matter."""
        count = len(spans)
        slots = self._attention.written(spans)
        starts = [span.start for span in spans]
        lengths = [span.context_len for span in spans]
        self._columns[:, :count] = [token_ids, starts, slots, lengths]
        self._columns[:, count:size] = _PADDING
        for row, span in enumerate(spans):
            # Most steps change few tables, and to compare a list is far faster than to convert it.
            if self._in_tables[row] != span.block_table:
                self._in_tables[row] = list(span.block_table)
                self._tables[row, : len(span.block_table)] = span.block_table
        return int(self._columns.size + count * self._tables.shape[1])

    def _capture(self, size: int) -> _Captured:
        """Capture the forward of `size` sequences."""
        columns, tables = _inputs_in(self._inputs, self._max_num_seqs)
        token_ids, positions, slots, lengths = columns[:, :size]
        slots.fill_(-1)
        attend = self._attention.decode(Decodes(slots, lengths, tables[:size]))
        self._stream.wait_stream(torch.cuda.current_stream())
        # Once without capturing: libraries load their kernels at first use, and cuBLAS makes its
        # workspace for this stream, which all graphs then share and which outlives them.
        with torch.cuda.stream(self._stream):
            self._model.forward(token_ids, positions, None, attend)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            logits = self._model.forward(token_ids, positions, None, attend)
        return _Captured(graph, logits, attend)
