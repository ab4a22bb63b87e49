"""Runs an app in uvicorn on a socket that is open already, and ends it gently."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from mini_llm_server.engine.engine_thread import EngineThread

CLOSING_S = 5.0  # for answers that the engine has ended to reach their clients


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address; port 0 takes a free one.

    Bound before the model is loaded, so that a port in use is known at once and nobody else can
    take it meanwhile. It does not listen yet: who connects is refused until the server is ready.

    Raises:
        OSError: the address cannot be used; the message names it.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError:
        opened.close()
        raise
    return opened


class Server(uvicorn.Server):
    """A server that lets running answers end, for a while, before it does.

    Args:
        app: made by `create_app`.
        drain_s: seconds for running answers once the end was asked for; then the engine stops,
            and each client that still waits is told so.
        on_ready: called when requests are accepted.
    """

    def __init__(
        self, app: FastAPI, *, drain_s: float = 10.0, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=round(drain_s + CLOSING_S),
            )
        )
        self._engine_thread: EngineThread = app.state.service.engine_thread
        self._drain_s = drain_s
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept requests."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop to accept requests, wait for the running ones, end."""
        draining = asyncio.ensure_future(self._stop_engine_later())
        await super().shutdown(sockets)
        draining.cancel()
        with suppress(asyncio.CancelledError):
            await draining

    async def _stop_engine_later(self) -> None:
        await asyncio.sleep(self._drain_s)
        await asyncio.to_thread(self._engine_thread.stop)
