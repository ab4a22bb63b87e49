"""How answers are spelled in OpenAI's two formats, whole and as chunks of a stream."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from typing import Any

from mini_llm_server.engine.request import FinishReason


class Format(ABC):
    """The format of one HTTP request's answer; every object it makes has the same id and time."""

    prefix: str
    whole: str
    chunk: str

    def __init__(self, model: str) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._model = model
        self._created = int(time.time())

    def answer(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """Return the whole answer."""
        return {**self._head(self.whole), "choices": choices, "usage": usage}

    def piece(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Return one chunk of a stream."""
        return {**self._head(self.chunk), "choices": choices}

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the choice that opens prompt `index`'s stream, where the format has one."""
        return None

    @abstractmethod
    def choice(self, index: int, text: str, reason: FinishReason | None) -> dict[str, Any]:
        """Return a whole answer's choice."""

    @abstractmethod
    def delta(self, index: int, text: str, reason: FinishReason | None) -> dict[str, Any]:
        """Return a chunk's choice."""

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model}


class CompletionFormat(Format):
    """/v1/completions: a chunk looks like a whole answer with less text."""

    prefix = "cmpl"
    whole = chunk = "text_completion"

    def choice(self, index: int, text: str, reason: FinishReason | None) -> dict[str, Any]:
        """Return a choice with its text."""
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}

    delta = choice


class ChatFormat(Format):
    """/v1/chat/completions: a message when whole; first its role and then its text in chunks."""

    prefix = "chatcmpl"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any]:
        """Return the choice that says who speaks."""
        return self._delta(index, {"role": "assistant", "content": ""}, None)

    def choice(self, index: int, text: str, reason: FinishReason | None) -> dict[str, Any]:
        """Return a choice with its message."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}

    def delta(self, index: int, text: str, reason: FinishReason | None) -> dict[str, Any]:
        """Return a choice with what its message grows by."""
        return self._delta(index, {"content": text} if text else {}, reason)

    @staticmethod
    def _delta(index: int, delta: dict[str, str], reason: FinishReason | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
