"""Runs a scheduled batch through the model: flattens it, plans attention, returns logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mini_llm_server.engine.kv_cache import Copy
from mini_llm_server.engine.request import Request
from mini_llm_server.engine.scheduler import Chunk
from mini_llm_server.model.attention import LayerAttention, Span, make_attention
from mini_llm_server.model.transformer import Llama

# All that torch's attention may use but cuDNN, which it prefers on Hopper GPUs: cuDNN makes a plan
# for every shape that it has not seen, which takes longer than the step, and contexts grow with
# every token, so that nearly each step brings a new shape.
_ATTENTION_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class StepInputs:
    """What a step's forward pass needs.

    Attributes:
        token_ids, positions: [N] int64, of the step's N tokens.
        rows: [S] int64, the tokens whose logits are wanted.
        attend: the step's attention.
        copies: (from, to) blocks of the KV cache, to be copied first.
        sampling: the requests of the S rows.
    """

    token_ids: Tensor
    positions: Tensor
    rows: Tensor
    attend: LayerAttention
    copies: list[Copy]
    sampling: list[Request]


class ModelRunner:
    """The model and its KV cache."""

    def __init__(self, model: Llama, num_blocks: int, block_size: int) -> None:
        self.model = model
        self.attention = make_attention(
            model.config, num_blocks, block_size, model.dtype, model.device
        )

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
        device = self.model.device
        return StepInputs(
            torch.tensor(token_ids, device=device),
            torch.tensor(positions, device=device),
            torch.tensor(rows, dtype=torch.int64, device=device),
            self.attention.plan(spans),
            copies,
            sampling,
        )

    def run(self, inputs: StepInputs) -> Tensor:
        """Return the logits [S, vocab]."""
        if inputs.copies:
            self.attention.copy_blocks(inputs.copies)
        with sdpa_kernel(_ATTENTION_KERNELS):
            return self.model.forward(
                inputs.token_ids, inputs.positions, inputs.rows, inputs.attend
            )
