"""The outermost middleware: gives each request its id, and logs, counts and traces it."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import h11
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from ..asgi import App, Message, Receive, Scope, Send, header, route_template, routed_path
from ..errors import error_response
from ..observability.logs import failure, logger, request_id
from ..observability.metrics import ServerMetrics, Stage, stages_of_request
from ..observability.tracing import Tracing, describe

_PROBES = frozenset({"/health", "/ping", "/ready", "/metrics", "/load"})
"""Asked every few seconds by machines: logged only where everything is."""
_UNSAFE = re.compile(r"[^\x21-\x7e]+")
_LONGEST_ID = 256


def safe_id(text: str) -> str:
    """What of a client's request id can stand in a header and in a line of a log: at most 256 printable ASCII characters."""
    return _UNSAFE.sub("", text)[:_LONGEST_ID]


class Instrumentation:
    """Counts, logs and traces requests; answers 500 where the app fails; adds `X-Request-Id` to every response.

    `scope["state"]["request_id"]` holds the id: the client's X-Request-Id where it sent a usable one, else a new one.
    A route may set another, such as that of a request's body.

    Args:
        metrics: counts them.
        tracing: makes spans of them; None makes none.
    """

    def __init__(self, app: App, metrics: ServerMetrics, tracing: Tracing | None = None) -> None:
        self.app = app
        self.metrics = metrics
        self.tracing = tracing
        self._known_routes: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = safe_id(header(scope, "x-request-id") or "") or uuid.uuid4().hex
        token = request_id.set(state["request_id"])
        span: AbstractContextManager[Any] = self.tracing.span(scope) if self.tracing else nullcontext()
        stages: list[Stage] | None = [] if self.tracing else None
        stages_token = stages_of_request.set(stages)
        started = time.perf_counter()
        self.metrics.request_begun()
        answer = _Answer(scope, send)
        try:
            with span as opened:
                try:
                    await answer.run(self.app, receive)
                finally:
                    if "answered_at" in state:
                        self.metrics.stage("respond", state["answered_at"], time.perf_counter())
                    if self.tracing is not None:
                        describe(opened, scope["method"], self._route(scope), answer.status, state["request_id"])
                        self.tracing.add_stages(opened, stages or [])
        finally:
            self._note(scope, answer.status, time.perf_counter() - started)
            request_id.reset(token)
            stages_of_request.reset(stages_token)

    def _route(self, scope: Scope) -> str:
        """The route template; before routing, the path if it is a known route, else "unmatched": so their number is bounded."""
        route = route_template(scope)
        if route is not None:
            self._known_routes.add(route)
            return route
        path = routed_path(scope)
        return path if path in self._known_routes else "unmatched"

    def _note(self, scope: Scope, status: int | None, seconds: float) -> None:
        method, route = scope["method"], self._route(scope)
        shown = "gone" if status is None else str(status)
        self.metrics.request_done(method, route, shown, seconds)
        level = logging.DEBUG if route in _PROBES and status == 200 else logging.INFO
        if logger.isEnabledFor(level):
            request_id.set(safe_id(str(scope["state"]["request_id"])))
            fields = {"method": method, "route": route, "status": shown, "seconds": round(seconds, 6)}
            logger.log(level, "request", extra={"fields": fields})


def server_error_response(scope: Scope, error: BaseException) -> Response:
    """The response to a request that failed by a server error; the log has the error, under the request id in the response."""
    identity = safe_id(str(scope.setdefault("state", {}).setdefault("request_id", uuid.uuid4().hex)))
    request_id.set(identity)  # a route may have set another since the request began
    logger.error("a request failed, which is a fault of vllm-cls: %s", failure(error))
    message = f"The server failed at this request; its log says why, under the request id {identity}."
    return error_response(500, message)


def add_last_error_handler(app: FastAPI) -> None:
    """Answer errors of middlewares around `Instrumentation`, and of itself, as it answers errors of the app."""

    def respond(request: Request, error: Exception) -> Response:
        response = server_error_response(request.scope, error)
        response.headers["X-Request-Id"] = request.scope["state"]["request_id"]
        return response

    app.add_exception_handler(Exception, respond)


class _Answer:
    """The response to one request: adds headers, and sends an error where the app fails.

    Args:
        status: the HTTP status, once it is sent.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.status: int | None = None
        self._send = send

    async def run(self, app: App, receive: Receive) -> None:
        """Let `app` answer."""
        try:
            await app(self.scope, receive, self.send)
        except asyncio.CancelledError:  # the time to shut down in is over
            if self.status is None:
                await error_response(503, "The server is shutting down.")(self.scope, receive, self.send)
            raise
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a tokenizer is no Exception
            response = server_error_response(self.scope, error)
            if self.status is not None:  # half an answer: the server must break the connection
                raise
            await response(self.scope, receive, self.send)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", []), *self._headers()]
            h11.Response(status_code=message["status"], headers=headers)  # raises, if it cannot be sent
            self.status, message["headers"] = message["status"], headers
        await self._send(message)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        ours = [(b"x-request-id", safe_id(str(self.scope["state"]["request_id"])).encode())]
        if getattr(getattr(self.scope.get("app"), "state", None), "draining", False):
            ours.append((b"connection", b"close"))  # so that no client sends another request into a closing door
        return ours
