"""Error responses, all in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import http
import math
import re
from collections.abc import Mapping, Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Mount
from typing_extensions import TypedDict

from ..errors import (
    ConfigError,
    DeadlineError,
    EngineDeadError,
    PromptError,
    PromptTooLongError,
    QueueFullError,
    RunError,
    VclsError,
)

_TOLD_ERRORS = 5
_FIELDS: Mapping[str | None, str] = {"lora_request": "model", "pooling_task": "task"}
"""What arguments of `AsyncLLM` are called in requests."""
_PLACES = re.compile(r"\b0x[0-9a-fA-F]{4,}|(?<![\w./<])(?:/[\w.@+~-]+){2,}")
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
    504: "TimeoutError",
}


class ErrorDetail(TypedDict):
    """What was wrong; `param` is the field, `code` the HTTP status."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorResponse(TypedDict):
    """The answer to a request that failed."""

    error: ErrorDetail


class RequestError(VclsError):
    """A request that cannot be answered.

    Args:
        message: what was wrong and what to do, for the client.
        param: the field, or None.
        status: of HTTP.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message, param)
        self.status = status


def error_response(
    status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a request that failed."""
    kind = _TYPES.get(status) or http.HTTPStatus(status).phrase.replace(" ", "") + "Error"
    error = ErrorDetail(message=message, type=kind, param=param, code=status)
    return JSONResponse(ErrorResponse(error=error), status, headers=dict(headers or {}))


def add_error_handlers(app: FastAPI) -> None:
    """Turn exceptions that are meant for the client into error responses; `Instrumentation` answers the others."""
    app.add_exception_handler(VclsError, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)


def _refused(request: Request, error: Exception) -> Response:
    message = _client_message(request, error)
    if isinstance(error, RequestError):
        return error_response(error.status, message, error.param)
    if isinstance(error, PromptTooLongError):
        return error_response(400, message, "input_tokens")
    if isinstance(error, PromptError | ConfigError) and not isinstance(error, RunError):
        return error_response(400, message, _field(request, error))
    if isinstance(error, QueueFullError):
        seconds = str(max(1, math.ceil(error.retry_after)))
        return error_response(429, message, headers={"Retry-After": seconds})
    if isinstance(error, DeadlineError):
        return error_response(504, message)
    if isinstance(error, EngineDeadError):
        return error_response(503, message)
    raise error


def _field(request: Request, error: PromptError | ConfigError) -> str | None:
    """The field that is wrong, as this request calls it; of a prompt that is, the one that holds it."""
    if error.param is None and isinstance(error, ConfigError):
        return None
    names = {**_FIELDS, **request.scope["state"].get("param_names", dict)()}
    return names.get(error.param, error.param)


def _client_message(request: Request, error: Exception) -> str:
    """A message that clients may see: without file paths and memory addresses, which other libraries put into theirs."""
    message = _without_folder(request, str(error))
    foreign = error.__cause__ is not None and not isinstance(error.__cause__, VclsError)
    return _PLACES.sub("…", message) if foreign else message


def _without_folder(request: Request, message: str) -> str:
    """A message of `LLM`, which calls the model by its folder, with the name that clients know."""
    model = getattr(request.app.state, "model", None)
    return message.replace(model.source, model.names[0]) if model and "/" in model.source else message


def _invalid(request: Request, error: Exception) -> Response:
    """A validation error of FastAPI, which only routes of plugins can have."""
    assert isinstance(error, RequestValidationError)
    found = [(".".join(map(str, each["loc"][1:])) or str(each["loc"][0]), each["msg"]) for each in error.errors()]
    return error_response(400, format_errors(found), found[0][0])


def format_errors(found: Sequence[tuple[str, str]]) -> str:
    """One message of several errors, pairs of a field and a message: each once, the first few of many."""
    return "; ".join(list(dict.fromkeys(f"{name}: {message}" for name, message in found))[:_TOLD_ERRORS])


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code == 404:
        path = request.scope["path"]
        reason = getattr(request.app.state, "absent", {}).get(path)
        message = f"There is no route {path} here: {reason}" if reason else f"There is no route {path}."
    elif error.status_code == 405:
        message = f"{request.scope['path']} does not take {request.method}."
    headers = dict(error.headers or {})
    if "Allow" in headers:  # Starlette names the methods of one of the path's routes
        headers["Allow"] = ", ".join(_methods(request)) or headers["Allow"]
    return error_response(error.status_code, message, headers=headers)


def _methods(request: Request) -> list[str]:
    """Those that the routes of the request's path take together; of an app that is mounted there, none are known."""
    routes = [each for each in request.app.routes if not isinstance(each, Mount)]
    tried = [(method, {**request.scope, "method": method}) for method in _METHODS]
    return [method for method, scope in tried if any(each.matches(scope)[0] is Match.FULL for each in routes)]
