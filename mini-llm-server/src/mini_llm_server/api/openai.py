"""The requests of OpenAI's API that this server takes, and what it refuses by name.

Nothing is ignored: a field is honoured, or it may hold the one value that asks for nothing
(`store: false`, `tools: []`, null), or the request is refused with an error that names the field.
Sources: OpenAI's API reference for chat completions and for completions.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from mini_llm_server.api.fields import Biases, Prompts, ResponseFormat, Stops, Text
from mini_llm_server.api.limits import MOST_ANSWERS, MOST_STOP_TOKENS
from mini_llm_server.api.unsupported import CHAT, COMPLETION, MESSAGE, STREAM_OPTIONS, Fields
from mini_llm_server.engine.sampling_params import MAX_LOGPROBS, MAX_PRIORITY, SamplingParams


class _Object(BaseModel):
    """A JSON object whose unknown fields are errors; null stands for an absent field."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    unsupported: ClassVar[Fields] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, data: Any) -> Any:
        """What is left of the unsupported fields is then an extra field, and refused as such."""
        if not isinstance(data, dict):
            return data

        def asks_for_nothing(name: str, value: Any) -> bool:
            if name not in cls.unsupported:
                return value is None and name in cls.model_fields
            return value is None or any(_same(value, each) for each in cls.unsupported[name])

        return {name: value for name, value in data.items() if not asks_for_nothing(name, value)}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe in the OpenAPI document what is dropped: null, and what asks for nothing."""
        described = handler(core)
        schema = handler.resolve_ref_schema(described)
        properties = schema["properties"]
        for name in properties.keys() - set(schema.get("required", ())):
            if {"type": "null"} not in properties[name].get("anyOf", ()):
                about = properties[name]
                properties[name] = {"anyOf": [about, {"type": "null"}]}
                for key in about.keys() & {"title", "description", "default"}:
                    properties[name][key] = about.pop(key)
        for name, harmless in cls.unsupported.items():
            properties[name] = {"enum": [None, *harmless], "description": "not supported"}
        return described


def _same(value: Any, other: Any) -> bool:
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


class StreamOptions(_Object):
    """What a stream holds besides the answer."""

    unsupported = STREAM_OPTIONS
    include_usage: bool = Field(False, description="a last chunk with the token counts")


class Message(_Object):
    """One turn of a conversation."""

    unsupported = MESSAGE
    role: Literal["system", "developer", "user", "assistant"]
    content: Text

    def as_template_sees_it(self) -> dict[str, str]:
        """Return role and content; "developer" is OpenAI's newer name for "system"."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content}


class GenerationRequest(_Object):
    """What both kinds of completion have in common.

    From `top_k` on the fields are none of OpenAI's; their names are vLLM's.
    """

    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Biases = Field(default_factory=dict)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int = Field(1, ge=1, le=MOST_ANSWERS, description="answers to each prompt")
    stop: Stops = ()
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat = None
    user: str | None = Field(None, description="written to the request's line in the log")
    top_k: int = Field(0, ge=0, lt=2**31, description="keep so many likely tokens; 0 keeps all")
    min_p: float = Field(0.0, ge=0, le=1, description="drop what is less likely than this share")
    repetition_penalty: float = Field(1.0, ge=0.01, le=10)
    min_tokens: int = Field(0, ge=0, description="no end before so many tokens")
    stop_token_ids: list[int] = Field(default_factory=list, max_length=MOST_STOP_TOKENS)
    ignore_eos: bool = Field(False, description="go on after an end-of-sequence token")
    priority: int = Field(
        0, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="a lower one is served sooner"
    )

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for stream: true only: leave them out")
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def num_logprobs(self) -> int | None:
        """How many likely tokens are reported beside each one; None for no log-probabilities."""
        raise NotImplementedError

    def sampling(self, max_tokens: int) -> SamplingParams:
        """Return what the engine needs.

        Raises:
            ParameterError: two fields contradict each other.
        """
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=self.logit_bias,
            seed=self.seed,
            n=self.n,
            logprobs=self.num_logprobs,
            stop=self.stop,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            structure=self.response_format,
            priority=self.priority,
        )


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    unsupported = COMPLETION
    prompt: Prompts
    max_tokens: int = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(None, description="only as many as n: all of them are returned")
    echo: bool = Field(False, description="begin each answer's text with its prompt")

    @model_validator(mode="after")
    def _check_together(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError(
                f"best_of is {self.best_of} and n {self.n}: answers are not ranked here, so leave "
                "best_of out or make it equal to n"
            )
        if self.echo and self.logprobs is not None:
            raise ValueError("echo together with logprobs is not supported: leave one of them out")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """See `GenerationRequest`."""
        return self.logprobs


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    unsupported = CHAT
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, description="older name of the next one")
    max_completion_tokens: int | None = Field(
        None, ge=1, description="null leaves the answer all the room there is"
    )
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _check_together(self) -> ChatRequest:
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise ValueError(
                f"max_tokens is {old} and max_completion_tokens {new}: give one of the two"
            )
        if self.top_logprobs and not self.logprobs:
            raise ValueError(f"top_logprobs is {self.top_logprobs}: it needs logprobs: true")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """See `GenerationRequest`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit(self) -> int | None:
        """Most tokens to generate, under whichever name it came."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
