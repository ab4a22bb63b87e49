"""Server-sent events: each piece of an answer is one `data:` line, and `[DONE]` is the last."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mini_llm_server.api.answers import Answers
from mini_llm_server.api.disconnect import until_disconnect
from mini_llm_server.api.errors import APIError, ClientLeftError
from mini_llm_server.api.formats import Format
from mini_llm_server.api.logs import note


async def events(answers: Answers, form: Format, include_usage: bool) -> AsyncIterator[str]:
    """Yield the events of a stream.

    An error after the start cannot change the status any more: it becomes an event.
    """
    no_usage: dict[str, Any] = {"usage": None} if include_usage else {}
    opened: set[int] = set()
    try:
        async for piece in answers.pieces():
            if piece.index not in opened:
                opened.add(piece.index)
                opening = form.opening(piece.index)
                if opening is not None:
                    yield event({**opening, **no_usage})
            # Else its text waits for the next token's.
            if piece.text or piece.finish_reason or piece.logprobs:
                yield event({**form.delta(piece), **no_usage})
        if include_usage:
            yield event(form.closing(answers.usage()))
    except APIError as error:
        yield event(error.body)
    yield "data: [DONE]\n\n"


def event(data: dict[str, Any]) -> str:
    """Return one event. JSON holds no line break, so it needs just one `data:` line."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


class EventStream(StreamingResponse):
    """Sends events until the last one, or until the client leaves; then closes the answers."""

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, form: Format, include_usage: bool) -> None:
        # X-Accel-Buffering keeps nginx from holding tokens back until its buffer is full.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events(answers, form, include_usage), headers=headers)
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            with suppress(ClientLeftError):
                await until_disconnect(receive, self.stream_response(send))
        finally:
            await self._answers.aclose()
            note(scope, **self._answers.summary())
