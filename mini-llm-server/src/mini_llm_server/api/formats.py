"""How answers are spelled in OpenAI's two formats, whole and as chunks of a stream."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mini_llm_server.api.logprobs import chat_logprobs, completion_logprobs
from mini_llm_server.engine.request import FinishReason, TokenLogprobs
from mini_llm_server.model.tokenizer import Tokenizer


@dataclass
class Piece:
    """A part of one answer, or all of it.

    Attributes:
        index: of the choice.
        offset: characters of the answer before this piece's text.
        logprobs: of its tokens, where they were asked for.
    """

    index: int
    text: str = ""
    finish_reason: FinishReason | None = None
    offset: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class Format(ABC):
    """The format of one HTTP request's answer; every object it makes has the same id and time.

    Args:
        model: its name, as the request has it.
        tokenizer: names the tokens of log-probabilities.
        with_logprobs: whether there are any.
    """

    prefix: str
    whole: str
    chunk: str

    def __init__(self, model: str, tokenizer: Tokenizer, with_logprobs: bool) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._model = model
        self._tokenizer = tokenizer
        self._with_logprobs = with_logprobs
        self._created = int(time.time())

    def answer(self, pieces: Sequence[Piece], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the whole answer."""
        choices = [self._choice(piece) for piece in pieces]
        return {**self._head(self.whole), "choices": choices, "usage": usage}

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the chunk that opens choice `index`'s stream, where the format has one."""
        return None

    def delta(self, piece: Piece) -> dict[str, Any]:
        """Return a chunk of a stream with one more piece."""
        return {**self._head(self.chunk), "choices": [self._delta(piece)]}

    def closing(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Return the chunk that ends a stream with the token counts."""
        return {**self._head(self.chunk), "choices": [], "usage": usage}

    @abstractmethod
    def _choice(self, piece: Piece) -> dict[str, Any]:
        """Return a whole answer's choice."""

    @abstractmethod
    def _delta(self, piece: Piece) -> dict[str, Any]:
        """Return a chunk's choice."""

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model}


class CompletionFormat(Format):
    """/v1/completions: a chunk looks like a whole answer with less text."""

    prefix = "cmpl"
    whole = chunk = "text_completion"

    def _choice(self, piece: Piece) -> dict[str, Any]:
        logprobs = None
        if self._with_logprobs:
            logprobs = completion_logprobs(piece.logprobs, piece.offset, self._tokenizer)
        return {
            "index": piece.index,
            "text": piece.text,
            "logprobs": logprobs,
            "finish_reason": piece.finish_reason,
        }

    _delta = _choice


class ChatFormat(Format):
    """/v1/chat/completions: a message when whole; first its role and then its text in chunks."""

    prefix = "chatcmpl"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any]:
        """Return the chunk that says who speaks."""
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return {**self._head(self.chunk), "choices": [choice]}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"index": piece.index, "message": message, **self._tail(piece)}

    def _delta(self, piece: Piece) -> dict[str, Any]:
        delta = {"content": piece.text} if piece.text else {}
        return {"index": piece.index, "delta": delta, **self._tail(piece)}

    def _tail(self, piece: Piece) -> dict[str, Any]:
        logprobs = None
        if self._with_logprobs:
            logprobs = chat_logprobs(piece.logprobs, self._tokenizer)
        return {"logprobs": logprobs, "finish_reason": piece.finish_reason}
