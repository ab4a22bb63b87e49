"""The application: an engine in, an ASGI app out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import mini_llm_server
from mini_llm_server.api import errors
from mini_llm_server.api.auth import Auth
from mini_llm_server.api.body_limit import BodyLimit
from mini_llm_server.api.logs import RequestLog
from mini_llm_server.api.routes import generate, info
from mini_llm_server.api.routes.documented import describe
from mini_llm_server.api.service import Service
from mini_llm_server.engine.engine import Engine


def create_app(engine: Engine, *, api_key: str | None = None) -> FastAPI:
    """Return an app that serves the engine's model, for one run of a server.

    From the app's start to its end the engine belongs to a thread of its own: nothing else may
    touch it. `app.state.service` holds that thread.

    Args:
        engine: is served.
        api_key: what every request but GET /health has to bring; None lets everybody in.
    """
    service = Service(engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine_thread.start()
        watching = asyncio.ensure_future(service.metrics.watch_loop())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.to_thread(service.engine_thread.stop)

    app = FastAPI(title="mini-llm-server", version=mini_llm_server.__version__, lifespan=lifespan)
    app.state.service = service
    app.include_router(generate.router)
    app.include_router(info.router)
    describe(app, service.model_name)
    errors.install(app)
    # The last one added is the outermost: it sees what the others refuse.
    app.add_middleware(BodyLimit)
    if api_key is not None:
        app.add_middleware(Auth, key=api_key)
    app.add_middleware(RequestLog, count=service.metrics.http_request)
    return app
