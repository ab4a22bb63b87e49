"""The requests of OpenAI's API that this server takes, and what it refuses by name.

Nothing is ignored: a field is honoured, or it may hold the one value that asks for nothing
(`n: 1`, `logprobs: false`, null), or the request is refused with an error that names the field.
Sources: OpenAI's API reference for chat completions and for completions.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from mini_llm_server.api.unsupported import CHAT, COMPLETION, MESSAGE, STREAM_OPTIONS, Fields
from mini_llm_server.engine.request import SamplingParams

MOST_STOP_STRINGS = 4  # as at OpenAI; each costs a search through every answer's text
Prompt = str | list[int]


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


def _same(value: Any, other: Any) -> bool:
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def _as_prompts(value: Any) -> list[Prompt]:
    """Return a prompt in any of its four forms as a list of texts or lists of token ids."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and value:
        prompts: list[Prompt] = value
        if all(isinstance(each, str) for each in value):
            _check_texts(value)
            return prompts
        if _is_tokens(value):
            return [value]
        if all(isinstance(each, list) and _is_tokens(each) for each in value):
            return prompts
    raise ValueError(
        "it has to be a text, a list of texts, a list of token ids or a list of such lists"
    )


def _check_texts(texts: list[str]) -> None:
    """Refuse half of a surrogate pair, which JSON can spell ("\\ud83d") and UTF-8 cannot."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start : error.end]
            raise ValueError(f"it holds half a character: {half!r}") from None


def _is_tokens(value: list[Any]) -> bool:
    return all(type(each) is int for each in value)


def _as_stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
        raise ValueError("it has to be a text or a list of texts")
    if len(stops) > MOST_STOP_STRINGS:
        raise ValueError(f"it holds {len(stops)} texts, and at most {MOST_STOP_STRINGS} are taken")
    _check_texts(stops)
    if not all(stops):
        raise ValueError("an empty text would end every answer at once: leave it out")
    return tuple(stops)


def _as_text(value: Any) -> str:
    """Return a message's content: a text, or the texts of a list of text parts, joined."""
    if isinstance(value, str):
        _check_texts([value])
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("it has to be a text or a list of text parts")
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise ValueError(f"part {i} is of type {kind!r}, and only 'text' is supported")
        if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
            raise ValueError(f"part {i} has to be {{'type': 'text', 'text': '...'}}, no more")
    _check_texts([part["text"] for part in value])
    return "".join(part["text"] for part in value)


_TEXT_SCHEMA = {"type": "string"}
_PROMPT_SCHEMA = {
    "anyOf": [
        _TEXT_SCHEMA,
        {"type": "array", "items": _TEXT_SCHEMA},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}
_STOP_SCHEMA = {
    "anyOf": [
        _TEXT_SCHEMA,
        {"type": "array", "items": _TEXT_SCHEMA, "maxItems": MOST_STOP_STRINGS},
    ]
}
Prompts = Annotated[list[Prompt], PlainValidator(_as_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
Stops = Annotated[tuple[str, ...], BeforeValidator(_as_stops), WithJsonSchema(_STOP_SCHEMA)]
Text = Annotated[str, BeforeValidator(_as_text)]


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

    `top_k` and `ignore_eos` are no fields of OpenAI's; the names are vLLM's.
    """

    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stops = ()
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="written to the request's line in the log")
    top_k: int = Field(0, ge=0, description="keep this many most likely tokens; 0 keeps all")
    ignore_eos: bool = Field(False, description="go on after an end-of-sequence token")

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for stream: true only: leave them out")
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, max_tokens: int) -> SamplingParams:
        """Return what the engine needs."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=self.stop,
            ignore_eos=self.ignore_eos,
        )


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    unsupported = COMPLETION
    prompt: Prompts
    max_tokens: int = Field(16, ge=1)


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    unsupported = CHAT
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, description="older name of the next one")
    max_completion_tokens: int | None = Field(
        None, ge=1, description="null leaves the answer all the room there is"
    )

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise ValueError(
                f"max_tokens is {old} and max_completion_tokens {new}: give one of the two"
            )
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens to generate, under whichever name it came."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
