"""Errors as OpenAI's API gives them: a status, and a body that names the parameter at fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Scope

from mini_llm_server.api import unsupported
from mini_llm_server.api.logs import note
from mini_llm_server.engine.request import EngineDead, QueueFull, RequestTooLarge
from mini_llm_server.engine.sampling_params import ParameterError

SHOWN_CHARACTERS = 60  # of a wrong value, in a message


class APIError(HTTPException):
    """A refusal with its HTTP status and what OpenAI's error object holds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param, self.code, self.kind = param, code, kind

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        return error_body(str(self.detail), self.kind, self.param, self.code)


class ClientLeftError(Exception):
    """The client closed its connection before it had its answer."""


def error_body(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def server_error(message: str, *, status: int = 500, code: str = "engine_error") -> APIError:
    """Return an error that is not the client's fault."""
    return APIError(status, message, code=code, kind="server_error")


def from_engine(error: Exception, param: str) -> APIError:
    """Return what the client is told when the engine refuses a request.

    Args:
        error: raised by `EngineThread.generate`.
        param: the field that holds the prompt.
    """
    if isinstance(error, RequestTooLarge):
        return APIError(400, str(error), param=param, code="context_length_exceeded")
    if isinstance(error, QueueFull):
        return APIError(
            429,
            str(error),
            kind="rate_limit_error",
            code="queue_full",
            headers={"Retry-After": "1"},
        )
    if isinstance(error, EngineDead):
        return server_error(str(error), status=503, code="engine_dead")
    if isinstance(error, ParameterError):
        return from_parameter(error)
    return APIError(400, str(error), param=param)


def from_parameter(error: ParameterError) -> APIError:
    """Return the refusal of a sampling parameter, under the request's name for it."""
    name = {"structure": "response_format"}.get(error.parameter, error.parameter)
    return APIError(400, str(error), param=name)


def install(app: FastAPI) -> None:
    """Let every error that leaves the app take OpenAI's form."""

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        if not isinstance(error, APIError):
            message = str(error.detail)
            if error.status_code in (404, 405):
                message = f"{request.method} {request.url.path}: {message}"
            error = APIError(error.status_code, message, headers=error.headers)
        return response_of(request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        content_type = request.headers.get("content-type", "")
        return response_of(request.scope, from_validation(error.errors(), content_type))

    @app.exception_handler(ClientLeftError)
    async def left(request: Request, error: ClientLeftError) -> Response:
        return Response(status_code=499)  # nobody reads it: it is for the log

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        message = "internal error: the server's log says more"  # uvicorn writes it there
        return response_of(request.scope, server_error(message, code="internal_error"))


def response_of(scope: Scope, error: APIError) -> Response:
    """Return the response that says what is wrong, and note it for the log."""
    # Its message stays out of the log: it may quote the request.
    note(scope, param=error.param, code=error.code)
    return JSONResponse(error.body, error.status_code, error.headers)


def from_validation(errors: Sequence[Mapping[str, Any]], content_type: str) -> APIError:
    """Return the first of pydantic's errors as a refusal that names field, value and rule."""
    first = errors[0]
    kind, place = first["type"], list(first["loc"][1:])
    if kind == "json_invalid":
        position = place[0] if place else 0
        return APIError(
            400, f"the body is no JSON: {first['ctx']['error']} at character {position}"
        )
    param = _path(place)
    if kind == "value_error":
        at = f"{param}: " if param else ""
        return APIError(400, f"{at}{first['ctx']['error']}", param=param or None)
    if not param:
        if "json" not in content_type:
            return APIError(
                400,
                f"content-type is {content_type!r}: send JSON with the header "
                "'Content-Type: application/json'",
            )
        return APIError(400, f"the body has to be a JSON object: {first['msg']}")
    if kind == "extra_forbidden":
        if place[-1] in unsupported.NAMES:
            message = f"this server does not support {param}: leave it out"
            return APIError(400, message, param=param, code="unsupported_parameter")
        message = f"{param} is no parameter of this request: leave it out"
        return APIError(400, message, param=param, code="unknown_parameter")
    if kind == "missing":
        return APIError(400, f"{param} is missing", param=param, code="missing_required_parameter")
    message = f"{param} is {_shortened(first['input'])}: {first['msg']}"
    return APIError(400, message, param=param)


def _path(place: Sequence[str | int]) -> str:
    """Return where a value stands in the body: `messages[0].content`."""
    path = ""
    for step in place:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path


def _shortened(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return "nested too deeply to be shown"
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
