"""Refuses bodies that no request needs, before they are parsed or even fully received."""

from __future__ import annotations

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mini_llm_server.api.errors import APIError
from mini_llm_server.api.limits import MAX_BODY_BYTES


class BodyLimit:
    """ASGI middleware: 413 once a body is longer than the limit."""

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY_BYTES) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app with a `receive` that counts."""
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._limit:
                    raise self._refusal()
            return message

        await self._app(scope, count if scope["type"] == "http" else receive, send)

    def _refusal(self) -> HTTPException:
        return APIError(413, f"the body is longer than {self._limit} bytes: send less")
