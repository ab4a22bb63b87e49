"""The engine: requests in, streamed pieces of text out, one model step at a time.

Synchronous and without threads: `add`, `step` until `has_work` is false. The server runs it in a
thread of its own (`EngineThread`); tests and offline use drive it directly.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from mini_llm_server.engine.config import EngineConfig, EngineStats
from mini_llm_server.engine.kv_cache import BlockPool
from mini_llm_server.engine.logits import adjust, log_probabilities
from mini_llm_server.engine.model_runner import ModelRunner
from mini_llm_server.engine.request import (
    FinishReason,
    Output,
    ParameterError,
    QueueFull,
    Request,
    RequestTooLarge,
    SamplingParams,
    TokenLogprobs,
)
from mini_llm_server.engine.sampler import sample
from mini_llm_server.engine.scheduler import SCHEDULERS
from mini_llm_server.engine.structure import Grammars
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
            self._pool,
            config.max_num_seqs,
            config.max_num_batched_tokens,
            prefix_caching=config.prefix_caching,
            priority_steps=config.priority_steps,
        )
        self._runner = ModelRunner(loaded.model, num_blocks, config.block_size)
        if config.cuda_graphs:
            self._runner.capture(config.max_num_seqs, self.max_model_len)
        # Models often have rows for more ids than their tokenizer uses; those are never sampled.
        self._vocab_size = min(loaded.config.vocab_size, loaded.tokenizer.vocab_size)
        self._eos_token_ids = frozenset(
            token for token in loaded.tokenizer.eos_token_ids if token < self._vocab_size
        )
        self._grammars = Grammars(loaded.tokenizer, self._vocab_size)
        self._live: dict[str, list[Request]] = {}  # a request's answers that have not ended
        self._seeds = random.Random(config.seed)
        self._steps = self._prompt_tokens = self._output_tokens = 0
        self._step_seconds = self._scheduling_seconds = 0.0

    @classmethod
    def load(cls, name: str, config: EngineConfig | None = None) -> Engine:
        """Load the model named `name` with the config's dtype and device, and build its engine."""
        config = config or EngineConfig()
        return cls(load_model(name, config.dtype, config.device), config)

    def check(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Refuse a request that can never be served; reads constants only, so any thread may.

        Raises:
            RequestTooLarge: prompt and max_tokens exceed the context or the whole KV pool.
            ParameterError: n exceeds max_num_seqs, a token id is outside the vocabulary, or the
                structure cannot be compiled. Compiling can take some 0.1 s the first time; an
                event loop calls `prepare` in another thread first.
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
        if params.n > self.config.max_num_seqs:
            raise ParameterError(
                "n",
                f"n is {params.n}, above max_num_seqs ({self.config.max_num_seqs}): all answers to "
                "a prompt run in one batch; ask for fewer",
            )
        for name in ("logit_bias", "stop_token_ids"):
            for token in getattr(params, name):
                if not 0 <= token < self._vocab_size:
                    raise ParameterError(
                        name,
                        f"{name} holds token id {token}: ids go from 0 to {self._vocab_size - 1}",
                    )
        self.prepare(params)
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

    def prepare(self, params: SamplingParams) -> None:
        """Compile the parameters' structure, so that `check` and `add` find it; any thread may.

        Raises:
            ParameterError: it cannot be compiled.
        """
        if params.structure is not None:
            self._grammars.compile(params.structure)

    def add(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        has_place: bool = False,
    ) -> None:
        """Queue a request.

        Args:
            has_place: its place in the queue was promised before, so it is not refused now:
                requests that were preempted meanwhile may have made the queue longer.

        Raises:
            RequestTooLarge, ValueError: see `check`; also for an id that is in use.
            QueueFull: max_waiting requests wait already.
        """
        self.check(prompt_token_ids, params)
        if request_id in self._live:
            raise ValueError(f"request id {request_id!r} is in use: choose another")
        if not has_place and len(self._scheduler.waiting) >= self.config.max_waiting:
            raise QueueFull(f"{self.config.max_waiting} requests wait already: try again later")
        seed = self._seeds.getrandbits(64)
        matcher = None if params.structure is None else self._grammars.compile(params.structure)
        request = Request.create(request_id, prompt_token_ids, params, seed, matcher)
        self._live[request_id] = [request]
        self._scheduler.add(request)

    def abort(self, request_id: str) -> None:
        """Drop a request and free its blocks; one that is unknown or done already is no error."""
        for request in self._live.pop(request_id, ()):
            self._scheduler.finish(request)

    def has_work(self) -> bool:
        """Say whether a step would do anything."""
        return self._scheduler.has_work()

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Run one model step; return a piece for each answer that got a token or ended.

        Raises:
            RuntimeError: blocks are held though nothing runs; the cache cannot be trusted.
        """
        start = time.perf_counter()
        batch = self._scheduler.schedule()
        if not batch.chunks:
            return []
        inputs = self._runner.prepare(batch.chunks)
        prepared = time.perf_counter()
        logits = self._runner.run(inputs)[:, : self._vocab_size]
        computed = time.perf_counter()
        self._scheduler.advance(batch)
        logits, requests = self._fork(logits, inputs.sampling)
        forked = time.perf_counter()
        tokens = sample(adjust(logits, requests, self._eos_token_ids), requests)
        logprobs = log_probabilities(logits, requests, tokens)
        sampled = time.perf_counter()
        outputs = [self._emit(*each) for each in zip(requests, tokens, logprobs, strict=True)]
        if self._pool.num_used and not self._scheduler.running:
            raise RuntimeError(f"{self._pool.num_used} KV blocks are held though nothing runs")
        end = time.perf_counter()
        self._steps += 1
        self._step_seconds += end - start
        self._scheduling_seconds += end - start - (computed - prepared) - (sampled - forked)
        return outputs

    def stats(self) -> EngineStats:
        """Return the gauges and counters."""
        return EngineStats(
            waiting=len(self._scheduler.waiting),
            running=len(self._scheduler.running),
            blocks_total=self._pool.num_blocks,
            blocks_free=self._pool.num_free,
            blocks_cached=self._pool.num_cached,
            blocks_used=self._pool.num_used,
            preemptions=self._scheduler.num_preemptions,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            prefix_query_tokens=self._scheduler.num_prefix_query_tokens,
            prefix_hit_tokens=self._scheduler.num_prefix_hit_tokens,
            step_seconds=self._step_seconds,
            scheduling_seconds=self._scheduling_seconds,
        )

    def _fork(self, logits: Tensor, sampling: list[Request]) -> tuple[Tensor, list[Request]]:
        """Give every answer of a request whose prompt is computed its own sequence and logits."""
        if not any(request.num_forks for request in sampling):
            return logits, sampling
        rows: list[int] = []
        requests: list[Request] = []
        for row, request in enumerate(sampling):
            family = [request, *(request.fork(i + 1) for i in range(request.num_forks))]
            for child in family[1:]:
                self._scheduler.fork(request, child)
            self._live[request.request_id] += family[1:]
            requests += family
            rows += [row] * len(family)
        return logits[rows], requests

    def _emit(self, request: Request, token: int | None, logprobs: TokenLogprobs | None) -> Output:
        """Append a sampled token to its answer, and end the answer if it is the last one."""
        text, error = "", ""
        reason: FinishReason | None = None
        if token is None:
            reason, error = "error", self._why_broken(request)
        else:
            request.append(token)
            self._output_tokens += 1
            if request.num_output_tokens == 1 and request.index == 0:
                self._prompt_tokens += request.num_prompt_tokens
            text, reason = self._read(request, token)
        if reason is not None:
            text += request.text.finish()
            self._scheduler.finish(request, forget=reason == "error")
            answers = self._live[request.request_id]
            answers.remove(request)
            if not answers:
                del self._live[request.request_id]
        return Output(
            request_id=request.request_id,
            token_id=token,
            text=text,
            finish_reason=reason,
            prompt_tokens=request.num_prompt_tokens,
            completion_tokens=request.num_output_tokens,
            error=error,
            index=request.index,
            logprobs=logprobs,
            cached_tokens=min(request.num_cached_tokens or 0, request.num_prompt_tokens),
        )

    def _read(self, request: Request, token: int) -> tuple[str, FinishReason | None]:
        """Return the text that a sampled token made final, and why it ends the answer if so."""
        params, matcher = request.params, request.matcher
        if token in params.stop_token_ids:
            return "", "stop"
        if token in self._eos_token_ids and not (params.ignore_eos and matcher is None):
            return "", "stop"
        text = request.text.push(self.loaded.tokenizer.token_bytes(token))
        if request.text.stopped:
            return text, "stop"
        if matcher is not None:
            matcher.advance(token)
            if matcher.is_complete:
                return text, "stop"
        return text, "length" if request.num_output_tokens == params.max_tokens else None

    @staticmethod
    def _why_broken(request: Request) -> str:
        if request.matcher is not None and request.matcher.error:
            return f"its structure cannot be followed any further: {request.matcher.error}"
        return "the model's logits are not finite for this request: its weights may be broken"


def _blocks_in_memory(loaded: LoadedModel, config: EngineConfig, max_model_len: int) -> int:
    """Return how many blocks the memory budget holds, at least one."""
    model = loaded.model
    budget = float(CPU_KV_CACHE_BYTES)
    if model.device.type == "cuda":
        budget = torch.cuda.mem_get_info(model.device)[0] * GPU_KV_CACHE_SHARE
    block_bytes = loaded.config.kv_bytes_per_token(model.dtype.itemsize) * config.block_size
    useful = config.max_num_seqs * -(-max_model_len // config.block_size)
    return max(1, min(int(budget // block_bytes), useful))
