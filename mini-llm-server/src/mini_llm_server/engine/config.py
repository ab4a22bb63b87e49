"""The engine's settings and its statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from mini_llm_server.engine.scheduler import SCHEDULERS


@dataclass(frozen=True)
class EngineConfig:
    """The engine's settings.

    Args:
        scheduler: "continuous"; or, as baselines, "static" for batches that are formed once and
            run until their longest answer ends, and "fifo" for one request at a time.
        max_num_seqs: most requests in one step.
        max_num_batched_tokens: most tokens in one step; longer prompts take several steps.
        block_size: tokens in a KV block.
        num_blocks: KV blocks; None takes what fits into 512 MiB on a CPU, or into 80% of a GPU's
            free memory, and no more than max_num_seqs requests of full length can use.
        max_model_len: most tokens of a request, prompt and answer; None is the model's own limit.
        max_waiting: most requests in the queue; one more is refused.
        prefix_caching: keep the blocks of ended requests, and start a request whose prompt
            begins like an earlier one from there.
        cuda_graphs: on a GPU with our kernels, capture the steps that only decode as CUDA graphs
            when the engine is built; takes some memory, and for a large model some seconds.
        priority_steps: a step of priority weighs as much as having arrived this many steps
            earlier.
        dtype: of weights and cache, for `Engine.load`; None chooses by device.
        device: for `Engine.load`; None is the GPU where there is one.
        seed: for requests that bring no seed of their own.

    Raises:
        ValueError: naming the setting, its value and its limit.
    """

    scheduler: Literal["continuous", "static", "fifo"] = "continuous"
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    block_size: int = 16
    num_blocks: int | None = None
    max_model_len: int | None = None
    max_waiting: int = 256
    prefix_caching: bool = True
    cuda_graphs: bool = True
    priority_steps: int = 256
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            known = ", ".join(SCHEDULERS)
            raise ValueError(f"no scheduler is named {self.scheduler!r}: there are {known}")
        for name in ("max_num_seqs", "block_size", "num_blocks", "max_model_len", "max_waiting"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, below max_num_seqs "
                f"({self.max_num_seqs}): a step could not decode every running request; raise it"
            )


@dataclass(frozen=True)
class EngineStats:
    """A snapshot: gauges of now, and counters since the start.

    `prompt_tokens` counts prompts whose first token was sampled, each once, `output_tokens` the
    sampled tokens; work that a preemption makes the engine repeat is in neither.
    `blocks_free + blocks_cached + blocks_used == blocks_total`: a cached block belongs to nobody
    and still holds an earlier prompt's keys and values; it is given away when no free one is left.
    `prefix_hit_tokens` of `prefix_query_tokens` prompt tokens were found in the cache. The seconds
    are sums over all steps; `scheduling_seconds` is the part of `step_seconds` in which tokens
    were chosen, blocks accounted for and requests kept, all but the model and the sampler.
    """

    waiting: int
    running: int
    blocks_total: int
    blocks_free: int
    blocks_cached: int
    blocks_used: int
    preemptions: int
    steps: int
    prompt_tokens: int
    output_tokens: int
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    step_seconds: float = 0.0
    scheduling_seconds: float = 0.0
