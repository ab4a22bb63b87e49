"""The engine: requests in, streamed pieces of text out, one model step at a time.

Synchronous and without threads: `add`, `step` until `has_work` is false. The server runs it in a
thread of its own (`EngineThread`); tests and offline use drive it directly.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from mini_llm_server.engine.config import EngineConfig, EngineStats
from mini_llm_server.engine.kv_cache import BlockPool
from mini_llm_server.engine.model_runner import ModelRunner
from mini_llm_server.engine.request import (
    FinishReason,
    Output,
    QueueFull,
    Request,
    RequestTooLarge,
    SamplingParams,
)
from mini_llm_server.engine.sampler import sample
from mini_llm_server.engine.scheduler import SCHEDULERS, ScheduledBatch
from mini_llm_server.engine.text_stream import TextStream
from mini_llm_server.model.loader import LoadedModel, load_model

__all__ = ["Engine", "EngineConfig", "EngineStats"]

CPU_KV_CACHE_BYTES = 512 * 2**20
GPU_KV_CACHE_SHARE = 0.8  # of the memory free once the weights are loaded


class Engine:
    """Schedules, runs and samples.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig | None = None) -> None:
        config = config or EngineConfig()
        self.config = config
        self.loaded = loaded
        limit = loaded.config.max_position
        self.max_model_len = limit if config.max_model_len is None else config.max_model_len
        if not 1 < self.max_model_len <= limit:
            raise ValueError(
                f"max_model_len is {self.max_model_len}: {loaded.name} takes 2 to {limit} tokens"
            )
        num_blocks = config.num_blocks
        if num_blocks is None:
            num_blocks = _blocks_in_memory(loaded, config, self.max_model_len)
        self._pool = BlockPool(num_blocks, config.block_size)
        self._scheduler = SCHEDULERS[config.scheduler](
            self._pool, config.max_num_seqs, config.max_num_batched_tokens
        )
        self._runner = ModelRunner(loaded.model, num_blocks, config.block_size)
        self._live: dict[str, tuple[Request, TextStream]] = {}
        self._seeds = random.Random(config.seed)
        self._steps = self._prompt_tokens = self._output_tokens = 0

    @classmethod
    def load(cls, name: str, config: EngineConfig | None = None) -> Engine:
        """Load the model named `name` with the config's dtype and device, and build its engine."""
        config = config or EngineConfig()
        return cls(load_model(name, config.dtype, config.device), config)

    def check(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Refuse a request that can never be served; reads constants only, so any thread may.

        Raises:
            RequestTooLarge: prompt and max_tokens exceed the context or the whole KV pool.
            ValueError: the prompt is empty or holds an id outside the vocabulary.
        """
        num_prompt = len(prompt_token_ids)
        vocab_size = self.loaded.config.vocab_size
        if not num_prompt:
            raise ValueError("the prompt is empty: it needs at least 1 token")
        if not 0 <= min(prompt_token_ids) <= max(prompt_token_ids) < vocab_size:
            wrong = next(t for t in prompt_token_ids if not 0 <= t < vocab_size)
            raise ValueError(
                f"the prompt holds token id {wrong}: ids go from 0 to {vocab_size - 1}"
            )
        total = num_prompt + params.max_tokens
        asked = f"{num_prompt} prompt tokens and max_tokens {params.max_tokens} are {total} tokens"
        if total > self.max_model_len:
            raise RequestTooLarge(
                f"{asked}, above the limit of {self.max_model_len}: "
                "shorten the prompt or lower max_tokens"
            )
        # The last token sampled is never fed back, so the cache holds one less.
        capacity = self._pool.num_blocks * self._pool.block_size
        if total - 1 > capacity:
            raise RequestTooLarge(
                f"{asked}, above the {capacity} that the KV cache can hold: "
                "shorten the prompt, lower max_tokens or give the server more num_blocks"
            )

    def add(self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Queue a request.

        Raises:
            RequestTooLarge, ValueError: see `check`; also for an id that is in use.
            QueueFull: max_waiting requests wait already.
        """
        self.check(prompt_token_ids, params)
        if request_id in self._live:
            raise ValueError(f"request id {request_id!r} is in use: choose another")
        if len(self._scheduler.waiting) >= self.config.max_waiting:
            raise QueueFull(f"{self.config.max_waiting} requests wait already: try again later")
        seed = self._seeds.getrandbits(64)
        request = Request.create(request_id, prompt_token_ids, params, seed)
        self._live[request_id] = (request, TextStream(params.stop))
        self._scheduler.add(request)

    def abort(self, request_id: str) -> None:
        """Drop a request and free its blocks; one that is unknown or done already is no error."""
        entry = self._live.pop(request_id, None)
        if entry is not None:
            self._scheduler.finish(entry[0])

    def has_work(self) -> bool:
        """Say whether a step would do anything."""
        return self._scheduler.has_work()

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Run one model step; return a piece for each request that got a token or ended."""
        batch = self._scheduler.schedule()
        if not batch.chunks:
            return []
        logits, requests = self._runner.run(batch.chunks)
        return self._finish_step(batch, requests, sample(logits, requests))

    def stats(self) -> EngineStats:
        """Return the gauges and counters."""
        return EngineStats(
            waiting=len(self._scheduler.waiting),
            running=len(self._scheduler.running),
            blocks_total=self._pool.num_blocks,
            blocks_free=self._pool.num_free,
            blocks_cached=0,
            blocks_used=self._pool.num_used,
            preemptions=self._scheduler.num_preemptions,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
        )

    def _finish_step(
        self, batch: ScheduledBatch, requests: list[Request], tokens: list[int | None]
    ) -> list[Output]:
        self._steps += 1
        self._scheduler.advance(batch)
        return [self._emit(r, token) for r, token in zip(requests, tokens, strict=True)]

    def _emit(self, request: Request, token: int | None) -> Output:
        """Append a sampled token to its request, and end the request if it is the last one."""
        stream = self._live[request.request_id][1]
        params = request.params
        text, error = "", ""
        reason: FinishReason | None = None
        if token is None:
            reason = "error"
            error = "the model's logits are not finite for this request: its weights may be broken"
        else:
            request.token_ids.append(token)
            self._output_tokens += 1
            if request.num_output_tokens == 1:
                self._prompt_tokens += request.num_prompt_tokens
            if token in self.loaded.tokenizer.eos_token_ids and not params.ignore_eos:
                reason = "stop"
            else:
                text = stream.push(self.loaded.tokenizer.token_bytes(token))
                if stream.stopped:
                    reason = "stop"
                elif request.num_output_tokens == params.max_tokens:
                    reason = "length"
        if reason is not None:
            text += stream.finish()
            self._scheduler.finish(request)
            del self._live[request.request_id]
        return Output(
            request_id=request.request_id,
            token_id=token,
            text=text,
            finish_reason=reason,
            prompt_tokens=request.num_prompt_tokens,
            completion_tokens=request.num_output_tokens,
            error=error,
        )


def _blocks_in_memory(loaded: LoadedModel, config: EngineConfig, max_model_len: int) -> int:
    """Return how many blocks the memory budget holds, at least one."""
    model = loaded.model
    budget = float(CPU_KV_CACHE_BYTES)
    if model.device.type == "cuda":
        budget = torch.cuda.mem_get_info(model.device)[0] * GPU_KV_CACHE_SHARE
    block_bytes = loaded.config.kv_bytes_per_token(model.dtype.itemsize) * config.block_size
    useful = config.max_num_seqs * -(-max_model_len // config.block_size)
    return max(1, min(int(budget // block_bytes), useful))
