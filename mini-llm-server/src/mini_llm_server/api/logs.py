"""The log: one JSON object a line, and one line for each request. It never holds a prompt."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import datetime, timezone
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)


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
    scope.setdefault("mini_llm_server.log", {}).update(fields)


class RequestLog:
    """ASGI middleware: one line for each request, when it has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app and write the line."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        fields: dict[str, Any] = {"method": scope["method"], "path": scope["path"], "status": None}
        scope["mini_llm_server.log"] = fields

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                fields["status"] = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:  # becomes a 500 further out
            fields["status"] = 500
            raise
        finally:
            fields["seconds"] = round(time.perf_counter() - begin, 4)
            # A load balancer asks for /health every few seconds.
            level = logging.DEBUG if scope["path"] == "/health" else logging.INFO
            log.log(level, "request", extra={"fields": fields})
