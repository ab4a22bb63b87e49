"""GET /v1/models, /health and /metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from mini_llm_server.api.routes.documented import (
    HEALTH_RESPONSES,
    METRICS_RESPONSES,
    NOT_FOUND,
    UNAUTHORIZED,
)
from mini_llm_server.api.service import Service, service_of

router = APIRouter()


@router.get("/v1/models", responses=UNAUTHORIZED)
async def models(request: Request) -> dict[str, Any]:
    """List the one model that is served."""
    return {"object": "list", "data": [_model(service_of(request))]}


@router.get("/v1/models/{name:path}", responses={**UNAUTHORIZED, **NOT_FOUND})
async def model(name: str, request: Request) -> dict[str, Any]:
    """Describe a model."""
    service = service_of(request)
    service.check_model(name)
    return _model(service)


@router.get("/health", response_model=None, responses=HEALTH_RESPONSES)
async def health(request: Request) -> Response:
    """Say whether requests are answered (200) or not (503), and how busy the engine is."""
    service = service_of(request)
    healthy = service.engine_thread.healthy
    report = {
        "status": "ok" if healthy else "dead",
        **service.description,
        "engine": asdict(service.engine_thread.stats()),
    }
    return JSONResponse(report, 200 if healthy else 503)


@router.get("/metrics", response_model=None, responses=METRICS_RESPONSES)
async def metrics(request: Request) -> Response:
    """Return what a Prometheus server scrapes."""
    return Response(service_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "mini-llm-server",
    }
