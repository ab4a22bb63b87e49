"""A request: what the caller asks for, what is streamed back, and the engine's state in between.

Pure Python: the scheduler and its simulations use these without torch.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mini_llm_server.engine.sampling_params import ParameterError, SamplingParams, Structure

__all__ = [
    "EngineDead",
    "FinishReason",
    "Output",
    "ParameterError",
    "QueueFull",
    "Request",
    "RequestTooLarge",
    "SamplingParams",
    "Status",
    "Structure",
    "TokenLogprobs",
]

FinishReason = Literal["stop", "length", "abort", "error"]


class RequestTooLarge(ValueError):  # noqa: N818 (named like queue.Full: what is the case)
    """The request can never fit: longer than the model's context or than the whole KV pool."""


class QueueFull(RuntimeError):  # noqa: N818
    """As many requests wait as the engine is configured to hold: try again later."""


class EngineDead(RuntimeError):  # noqa: N818
    """The engine's thread has ended, so no request will be answered any more."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of the model's own probabilities at one place of an answer.

    Attributes:
        token_id, logprob: the sampled token.
        top: (token id, logprob) of the likeliest tokens, likeliest first, as many as asked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Output:
    """One streamed piece of one of a request's answers.

    Attributes:
        token_id: the token sampled in this step; None where there is none (abort, error).
        text: text that became final in this step. Never half a UTF-8 character, and held back
            while it may be the start of a stop string; the last piece carries what was held.
        finish_reason: None until the last piece of this answer.
        prompt_tokens, completion_tokens: counts so far, of this answer; an end-of-sequence token
            is counted.
        error: the reason, where finish_reason is "error".
        index: which of the request's n answers, from 0. Each of them ends with a finish_reason.
        logprobs: of the token in `token_id`, where `SamplingParams.logprobs` asked for them.
        cached_tokens: how many of the prompt's tokens were found in the prefix cache.
    """

    request_id: str
    token_id: int | None
    text: str
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    error: str = ""
    index: int = 0
    logprobs: TokenLogprobs | None = None
    cached_tokens: int = 0


class Status(enum.Enum):
    """Where a request is: in the queue, in the batch, or done."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Request:
    """The engine's state of one request.

    `token_ids` is prompt and output in one list, so that prefill, decode and the recomputation
    after a preemption are one thing: compute the tokens from `num_computed_tokens` on.

    Attributes:
        block_table: KV blocks in the order of the sequence; block i holds tokens
            [i * block_size, (i + 1) * block_size).
        num_computed_tokens: tokens whose keys and values are in the cache.
        rng: draws one number for each sampled token, and for nothing else.
    """

    request_id: str
    token_ids: list[int]
    params: SamplingParams
    num_prompt_tokens: int
    rng: random.Random
    status: Status = Status.WAITING
    block_table: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_preemptions: int = 0

    @classmethod
    def create(
        cls,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        fallback_seed: int = 0,
    ) -> Request:
        """Return a waiting request; `fallback_seed` seeds it if the parameters hold no seed."""
        seed = fallback_seed if params.seed is None else params.seed
        prompt = list(prompt_token_ids)
        return cls(request_id, prompt, params, len(prompt), random.Random(seed))

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: the prompt and what was sampled."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens sampled so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens known whose keys and values are not in the cache yet: 1 while decoding."""
        return len(self.token_ids) - self.num_computed_tokens
