"""A request: what the caller asks for, what is streamed back, and the engine's state in between.

Pure Python: the scheduler and its simulations use these without torch.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


class RequestTooLarge(ValueError):  # noqa: N818 (named like queue.Full: what is the case)
    """The request can never fit: longer than the model's context or than the whole KV pool."""


class QueueFull(RuntimeError):  # noqa: N818
    """As many requests wait as the engine is configured to hold: try again later."""


class EngineDead(RuntimeError):  # noqa: N818
    """The engine's thread has ended, so no request will be answered any more."""


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one request are chosen and when it ends.

    Args:
        max_tokens: most tokens to generate, at least 1.
        temperature: logits are divided by it; 0 is greedy.
        top_p: keep the smallest set of most likely tokens whose probability reaches this.
        top_k: keep this many most likely tokens; 0 keeps all.
        seed: the same seed, prompt and parameters draw the same random numbers, whatever else
            runs at the same time. None draws a fresh one from the engine's own seed.
        stop: strings that end the generation; the text returned ends before them.
        ignore_eos: keep on generating after an end-of-sequence token (for benchmarks).

    Raises:
        ValueError: naming the parameter, its value and its range.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}: it must be at least 1")
        # `not (x >= 0)` instead of `x < 0`: NaN fails the first and passes the second.
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(
                f"temperature is {self.temperature}: it must be finite and at least 0 (0 is greedy)"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: it must be above 0 and at most 1 (1 is off)")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}: it must be at least 0 (0 is off)")
        if isinstance(self.stop, str):
            raise ValueError(f"stop is the string {self.stop!r}: pass a tuple, ({self.stop!r},)")
        if any(not s for s in self.stop):
            raise ValueError(f"stop is {self.stop!r}: an empty stop string would match at once")


@dataclass(frozen=True)
class Output:
    """One streamed piece of a request's answer.

    Attributes:
        token_id: the token sampled in this step; None where there is none (abort, error).
        text: text that became final in this step. Never half a UTF-8 character, and held back
            while it may be the start of a stop string; the last piece carries what was held.
        finish_reason: None until the last piece.
        prompt_tokens, completion_tokens: counts so far; an end-of-sequence token is counted.
        error: the reason, where finish_reason is "error".
    """

    request_id: str
    token_id: int | None
    text: str
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    error: str = ""


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
