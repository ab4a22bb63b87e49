"""Lets in who has the key."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mini_llm_server.api.errors import APIError, response_of

OPEN_PATHS = frozenset({"/health"})  # for load balancers, which hold no key


class Auth:
    """ASGI middleware: 401 without `Authorization: Bearer KEY`."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._digest = _digest(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app for who has the key."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._allows(scope):
            await self._app(scope, receive, send)
            return
        refusal = APIError(
            401,
            "the API key is missing or wrong: send the header 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            kind="authentication_error",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await response_of(scope, refusal)(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # Digests have one length and the comparison takes the same time wherever they differ, so
        # its duration tells nothing about the key.
        right = hmac.compare_digest(_digest(given.strip()), self._digest)
        return right and scheme.lower() == "bearer"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
