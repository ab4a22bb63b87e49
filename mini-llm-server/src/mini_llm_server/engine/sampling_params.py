"""What a caller may ask of the tokens of one request, checked once when it is made.

Pure Python. Every field is honoured by the engine; none is a placeholder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

MAX_LOGPROBS = 20  # alternatives a token; OpenAI's own limit, and each one costs in every step
MAX_PRIORITY = 100
MAX_LOGIT_BIAS = 100.0

StructureKind = Literal["json_object", "json_schema", "regex"]


class ParameterError(ValueError):
    """A parameter has a value that cannot be honoured.

    Attributes:
        parameter: its name in `SamplingParams`.
    """

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(message)
        self.parameter = parameter


@dataclass(frozen=True)
class Structure:
    """The form that an answer is held to, token by token.

    Args:
        kind: "json_object" for any JSON object, "json_schema" for what a JSON schema describes,
            "regex" for a regular expression that the whole answer matches.
        spec: the schema as JSON text, or the expression; empty for "json_object".

    Raises:
        ParameterError: the kind is unknown, or its spec is missing.
    """

    kind: StructureKind
    spec: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("json_object", "json_schema", "regex"):
            raise ParameterError(
                "structure",
                f"structure has kind {self.kind!r}: there are json_object, json_schema and regex",
            )
        if not self.spec and self.kind != "json_object":
            raise ParameterError("structure", f"structure of kind {self.kind} needs a spec")


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one request are chosen and when it ends.

    Logits are changed in this order: `structure` and `min_tokens` forbid tokens, then
    `logit_bias`, then the penalties, then `temperature`; then `min_p`, `top_k` and `top_p` keep
    the likelier tokens, and one of these is drawn.

    Args:
        max_tokens: most tokens to generate, at least 1.
        temperature: logits are divided by it; 0 is greedy.
        top_p: keep the smallest set of most likely tokens whose probability reaches this.
        top_k: keep this many most likely tokens; 0 keeps all.
        min_p: drop tokens less likely than this share of the likeliest one's probability.
        frequency_penalty: subtracted from a token's logit for each time the answer holds it.
        presence_penalty: subtracted once if the answer holds it.
        repetition_penalty: a positive logit of a token in prompt or answer is divided by it, a
            negative one multiplied (CTRL, Keskar et al. 2019); 1 is off.
        logit_bias: token id -> what is added to its logit, -100 to 100.
        seed: the same seed, prompt and parameters draw the same random numbers, whatever else
            runs at the same time. None draws a fresh one from the engine's own seed.
        n: answers to the one prompt, which is computed once for all of them. With a seed, each
            draws its own numbers.
        logprobs: how many of the likeliest tokens are reported beside each sampled one; 0 reports
            only the sampled one, None nothing. They are the model's own log-probabilities:
            temperature, penalties and all else above are not in them.
        stop: strings that end the generation; the text returned ends before them.
        stop_token_ids: tokens that end it, like an end-of-sequence token, also with ignore_eos.
        ignore_eos: keep on generating after an end-of-sequence token (for benchmarks).
        min_tokens: no end-of-sequence or stop token is sampled before this many.
        structure: the form that the answer is held to; it ends when the form is complete.
        priority: a lower one is served sooner, as if it had arrived earlier; so it is overtaken
            only for so long and nothing starves.

    Raises:
        ParameterError: naming the parameter, its value and its range.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    structure: Structure | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        # `not (x >= 0)` instead of `x < 0`: NaN fails the first and passes the second.
        self._check("max_tokens", self.max_tokens >= 1, "it must be at least 1")
        self._check(
            "temperature",
            self.temperature >= 0 and math.isfinite(self.temperature),
            "it must be finite and at least 0 (0 is greedy)",
        )
        self._check("top_p", 0 < self.top_p <= 1, "it must be above 0 and at most 1 (1 is off)")
        self._check("top_k", self.top_k >= 0, "it must be at least 0 (0 is off)")
        self._check("min_p", 0 <= self.min_p <= 1, "it must be from 0 (off) to 1")
        for name in ("frequency_penalty", "presence_penalty"):
            self._check(name, -2 <= getattr(self, name) <= 2, "it must be from -2 to 2 (0 is off)")
        self._check(
            "repetition_penalty",
            self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty),
            "it must be finite and above 0 (1 is off)",
        )
        for token, bias in self.logit_bias.items():
            if not -MAX_LOGIT_BIAS <= bias <= MAX_LOGIT_BIAS:
                raise ParameterError(
                    "logit_bias",
                    f"logit_bias is {bias} for token {token}: it must be from -100 to 100",
                )
        self._check("n", self.n >= 1, "it must be at least 1")
        if self.logprobs is not None:
            self._check(
                "logprobs", 0 <= self.logprobs <= MAX_LOGPROBS, f"it must be 0 to {MAX_LOGPROBS}"
            )
        if isinstance(self.stop, str):
            raise ParameterError(
                "stop", f"stop is the string {self.stop!r}: pass a tuple, ({self.stop!r},)"
            )
        self._check("stop", all(self.stop), "an empty stop string would match at once")
        self._check(
            "min_tokens",
            0 <= self.min_tokens <= self.max_tokens,
            f"it must be from 0 to max_tokens ({self.max_tokens})",
        )
        if self.structure is not None and self.min_tokens:
            raise ParameterError(
                "min_tokens",
                f"min_tokens is {self.min_tokens}: a structure says itself when it is complete, "
                "so leave one of the two out",
            )
        self._check(
            "priority",
            -MAX_PRIORITY <= self.priority <= MAX_PRIORITY,
            f"it must be from {-MAX_PRIORITY} to {MAX_PRIORITY}",
        )

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens so far change the next one's logits."""
        return (self.frequency_penalty, self.presence_penalty, self.repetition_penalty) != (0, 0, 1)

    def _check(self, name: str, ok: bool, rule: str) -> None:
        if not ok:
            raise ParameterError(name, f"{name} is {getattr(self, name)!r}: {rule}")
