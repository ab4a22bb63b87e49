"""The log: one JSON object a line, and one line for each request. It never holds a prompt."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

_FIELDS, _BEGIN = "mini_llm_server.log", "mini_llm_server.begin"  # places in the ASGI scope
_PLAIN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class JSONLines(logging.Formatter):
    """Writes a record as one line of JSON, with what its `fields` attribute holds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure(level: str) -> None:
    """Send every log record from `level` up to stderr, as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # These report each connection and each HTTP request a second time.
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def note(scope: Scope, **fields: Any) -> None:
    """Add fields to the line that is written when the request of `scope` has ended."""
    scope.setdefault(_FIELDS, {}).update(fields)


def arrival_of(scope: Scope) -> float:
    """Return when the request came, of time.perf_counter."""
    begin: float = scope[_BEGIN]
    return begin


class RequestLog:
    """ASGI middleware: one line and one count for each request, when it has ended.

    Each request has an id: its own `X-Request-Id` if that is short and plain, else a new one. The
    response carries it, and so does the line, so that a client's report finds its line.

    Args:
        count: called with the route's pattern ("" where there is none) and the status.
    """

    def __init__(self, app: ASGIApp, count: Callable[[str, int | None], None]) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app and write the line."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = scope[_BEGIN] = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _PLAIN_ID.fullmatch(given) else uuid.uuid4().hex
        fields: dict[str, Any] = {
            "request_id": request_id,
            "method": scope["method"],
            "path": scope["path"],
            "status": None,
        }
        scope[_FIELDS] = fields

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                fields["status"] = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:  # becomes a 500 further out
            fields["status"] = 500
            raise
        finally:
            fields["seconds"] = round(time.perf_counter() - begin, 4)
            self._count(getattr(scope.get("route"), "path", ""), fields["status"])
            # A load balancer asks for /health every few seconds, and Prometheus for /metrics.
            quiet = scope["path"] in ("/health", "/metrics")
            level = logging.DEBUG if quiet else logging.INFO
            log.log(level, "request", extra={"fields": fields})
