"""Runs a scheduled batch through the model: flattens it, plans attention, returns logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mini_llm_server.engine.request import Request
from mini_llm_server.engine.scheduler import Chunk
from mini_llm_server.model.attention import AttentionBackend, Span, TorchPagedAttention
from mini_llm_server.model.transformer import Llama


class ModelRunner:
    """The model and its KV cache."""

    def __init__(self, model: Llama, num_blocks: int, block_size: int) -> None:
        self.model = model
        self.attention: AttentionBackend = TorchPagedAttention(
            model.config, num_blocks, block_size, model.dtype, model.device
        )

    def run(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[Request]]:
        """Compute the chunks.

        Returns:
            logits [S, vocab] of the S chunks that sample, and their requests in the same order.
        """
        # Decodes first and by length: the attention backend batches neighbours of like length.
        chunks = sorted(chunks, key=lambda c: (c.num_tokens > 1, c.start + c.num_tokens))
        token_ids: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        rows: list[int] = []
        sampling: list[Request] = []
        for chunk in chunks:
            end = chunk.start + chunk.num_tokens
            token_ids += chunk.request.token_ids[chunk.start : end]
            positions += range(chunk.start, end)
            spans.append(Span(chunk.start, chunk.num_tokens, chunk.request.block_table))
            if chunk.samples:
                rows.append(len(token_ids) - 1)
                sampling.append(chunk.request)
        device = self.model.device
        logits = self.model.forward(
            torch.tensor(token_ids, device=device),
            torch.tensor(positions, device=device),
            torch.tensor(rows, dtype=torch.int64, device=device),
            self.attention.plan(spans),
        )
        return logits, sampling
