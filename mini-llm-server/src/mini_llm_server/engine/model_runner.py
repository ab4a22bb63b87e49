"""Runs a scheduled batch through the model: flattens it, plans attention, returns logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mini_llm_server.engine.decode_graph import DecodeGraphs
from mini_llm_server.engine.kv_cache import Copy
from mini_llm_server.engine.request import Request
from mini_llm_server.engine.scheduler import Chunk
from mini_llm_server.model.attention import (
    KernelPagedAttention,
    LayerAttention,
    Span,
    make_attention,
)
from mini_llm_server.model.transformer import Llama

# All that torch's attention may use but cuDNN, which it prefers on Hopper GPUs: cuDNN makes a plan
# for every shape that it has not seen, which takes longer than the step, and contexts grow with
# every token, so that nearly each step brings a new shape.
_ATTENTION_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class StepInputs:
    """A step, ready to run.

    Attributes:
        forward: gives the logits [S, vocab]; to be called once.
        copies: (from, to) blocks of the KV cache, to be copied first.
        sampling: the requests of the S rows.
    """

    forward: Callable[[], Tensor]
    copies: list[Copy]
    sampling: list[Request]


class ModelRunner:
    """The model and its KV cache."""

    def __init__(self, model: Llama, num_blocks: int, block_size: int) -> None:
        self.model = model
        self.attention = make_attention(
            model.config, num_blocks, block_size, model.dtype, model.device
        )
        self._graphs: DecodeGraphs | None = None

    def capture(self, max_num_seqs: int, max_model_len: int) -> None:
        """Let steps that only decode be replays of CUDA graphs, where there can be such.

        Args:
            max_num_seqs: most sequences in a step.
            max_model_len: most tokens of a sequence.
        """
        if self.model.device.type == "cuda" and isinstance(self.attention, KernelPagedAttention):
            pool = self.attention.kv.shape[2] // self.attention.block_size
            max_blocks = min(pool, -(-max_model_len // self.attention.block_size))
            self._graphs = DecodeGraphs(self.model, self.attention, max_num_seqs, max_blocks)

    def prepare(self, chunks: Sequence[Chunk]) -> StepInputs:
        """Flatten the chunks into one batch of tokens and plan its attention."""
        # Decodes first and by length: the attention backend batches neighbours of like length.
        chunks = sorted(chunks, key=lambda c: (c.num_tokens > 1, c.start + c.num_tokens))
        token_ids: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        rows: list[int] = []
        sampling: list[Request] = []
        copies: list[Copy] = []
        for chunk in chunks:
            end = chunk.start + chunk.num_tokens
            token_ids += chunk.request.token_ids[chunk.start : end]
            positions += range(chunk.start, end)
            spans.append(Span(chunk.start, chunk.num_tokens, chunk.request.block_table))
            copies += chunk.copies
            if chunk.samples:
                rows.append(len(token_ids) - 1)
                sampling.append(chunk.request)
        if self._graphs is not None and len(chunks) == len(token_ids) == len(rows):
            return StepInputs(partial(self._graphs.run, token_ids, spans), copies, sampling)
        device = self.model.device
        forward = partial(
            self._launch,
            torch.tensor(token_ids, device=device),
            torch.tensor(positions, device=device),
            torch.tensor(rows, dtype=torch.int64, device=device),
            self.attention.plan(spans),
        )
        return StepInputs(forward, copies, sampling)

    def run(self, inputs: StepInputs) -> Tensor:
        """Return the logits [S, vocab], in memory that the next step may overwrite."""
        if inputs.copies:
            self.attention.copy_blocks(inputs.copies)
        return inputs.forward()

    def _launch(
        self, token_ids: Tensor, positions: Tensor, rows: Tensor, attend: LayerAttention
    ) -> Tensor:
        with sdpa_kernel(_ATTENTION_KERNELS):
            return self.model.forward(token_ids, positions, rows, attend)
