"""A request: what the caller asks for, what is streamed back, and the engine's state in between.

Pure Python: the scheduler and its simulations use these without torch.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mini_llm_server.engine.sampling_params import ParameterError, SamplingParams, Structure
from mini_llm_server.engine.text_stream import TextStream

if TYPE_CHECKING:
    from mini_llm_server.engine.structure import Matcher

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
    """Where a sequence is: in the queue, in the batch, or done."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Request:
    """The engine's state of one sequence: a request, or one of its n answers.

    A request of n answers starts as one sequence. When its prompt is computed it forks: n - 1
    more go on from there, each with its own tokens and random numbers.

    `token_ids` is prompt and output in one list, so that prefill, decode and the recomputation
    after a preemption are one thing: compute the tokens from `num_computed_tokens` on.

    Attributes:
        seed: what its random numbers come from.
        index: which of the request's answers.
        num_forks: answers that are still to be forked off.
        rank: its place among all sequences; set by the scheduler, the smallest goes first.
        block_table: KV blocks in the order of the sequence; block i holds tokens
            [i * block_size, (i + 1) * block_size).
        block_keys: names of its first full blocks, as far as they were needed.
        num_computed_tokens: tokens whose keys and values are in the cache.
        num_cached_tokens: tokens that the prefix cache had when it was first admitted.
        rng: draws one number for each sampled token, and for nothing else.
        text: what of its answer is final text.
        token_counts: token -> how often the answer holds it, 0 for those of the prompt; kept only
            for a request with penalties.
        matcher: where in its structure the answer is; None without one.
    """

    request_id: str
    token_ids: list[int]
    params: SamplingParams
    num_prompt_tokens: int
    seed: int
    matcher: Matcher | None = None
    index: int = 0
    num_forks: int = 0
    rank: tuple[int, int, int] = (0, 0, 0)
    status: Status = Status.WAITING
    block_table: list[int] = field(default_factory=list)
    block_keys: list[bytes] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = None
    num_preemptions: int = 0

    def __post_init__(self) -> None:
        # The first answer's numbers are those of a request for one answer.
        self.rng = random.Random(f"answer {self.index} of {self.seed}" if self.index else self.seed)
        self.text = TextStream(self.params.stop)
        self.token_counts: dict[int, int] | None = None
        if self.params.has_penalties:
            self.token_counts = dict.fromkeys(self.token_ids, 0)

    @classmethod
    def create(
        cls,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        fallback_seed: int = 0,
        matcher: Matcher | None = None,
    ) -> Request:
        """Return a waiting request; `fallback_seed` seeds it if the parameters hold no seed."""
        seed = fallback_seed if params.seed is None else params.seed
        prompt = list(prompt_token_ids)
        return cls(request_id, prompt, params, len(prompt), seed, matcher, num_forks=params.n - 1)

    def fork(self, index: int) -> Request:
        """Return an answer to the same prompt; `Scheduler.fork` gives it blocks and a seat."""
        return Request(
            self.request_id,
            list(self.token_ids),
            self.params,
            self.num_prompt_tokens,
            self.seed,
            self.matcher and self.matcher.copy(),
            index=index,
            num_cached_tokens=self.num_cached_tokens,
        )

    def append(self, token: int) -> None:
        """Add a sampled token."""
        self.token_ids.append(token)
        if self.token_counts is not None:
            self.token_counts[token] = self.token_counts.get(token, 0) + 1

    @property
    def seats(self) -> int:
        """Places in the batch that it takes, those of its future forks included."""
        return 1 + self.num_forks

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
