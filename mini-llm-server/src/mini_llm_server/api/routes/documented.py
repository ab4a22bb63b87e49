"""What the OpenAPI document says of answers and errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

_TEXT_OR_NULL = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _TEXT_OR_NULL,
                "code": _TEXT_OR_NULL,
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ERROR}}}


def _answer(description: str, schema: dict[str, Any], *others: str) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    content |= {other: {} for other in others}
    return {"description": description, "content": content}


Responses = dict[int | str, dict[str, Any]]

UNAUTHORIZED: Responses = {401: _error("The API key is missing or wrong.")}
NOT_FOUND: Responses = {404: _error("There is no such model.")}
GENERATION_RESPONSES: Responses = {
    200: _answer(
        "The answers; with stream: true, server-sent events that each hold a part of them.",
        {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "object": {"enum": ["text_completion", "chat.completion"]},
                "created": {"type": "integer"},
                "model": {"type": "string"},
                "choices": {"type": "array", "items": {"type": "object"}},
                "usage": {"type": "object"},
            },
            "required": ["id", "object", "created", "model", "choices", "usage"],
        },
        "text/event-stream",
    ),
    400: _error("A field is wrong or not supported; param names it."),
    **UNAUTHORIZED,
    **NOT_FOUND,
    413: _error("The body is too long."),
    429: _error("The queue is full; Retry-After says when to come again."),
    503: _error("The engine has died, or the server is shutting down."),
}
HEALTH_RESPONSES: Responses = {
    200: _answer("Requests are answered.", {"type": "object"}),
    503: _answer("They are not.", {"type": "object"}),
}
METRICS_RESPONSES: Responses = {
    200: {
        "description": "Prometheus' text format.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    },
    **UNAUTHORIZED,
}


def describe(app: FastAPI, model_name: str) -> None:
    """Let /openapi.json name the one model there is, and leave out FastAPI's own 422.

    A wrong body is a 400 here, as it is at OpenAI.
    """
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            schemas = document["components"]["schemas"]
            for name in ("CompletionRequest", "ChatRequest"):
                schemas[name]["properties"]["model"]["enum"] = [model_name]
            (parameter,) = document["paths"]["/v1/models/{name}"]["get"]["parameters"]
            parameter["schema"]["enum"] = [model_name]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way
