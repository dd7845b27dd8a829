"""Limits of a request before its route: headers, body, time; a request is cancelled when its client disconnects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

from ..asgi import App, Message, Receive, Scope, Send, header, receive_whole
from ..errors import RequestError, error_response
from ..settings import ServerSettings
from .request_body import BufferedBytes, ClientDisconnected, check_depth, read_body

GRACE = 0.25
"""Seconds past its deadline that a request has to say so itself: the model then counts it as one that was late."""


class Limits:
    """Reads a request whole within its limits, runs the app on it, and drops that when the client is gone or time is up.

    A route never waits for the network: a slow client holds a few bytes here and no worker.
    """

    def __init__(self, app: App, settings: ServerSettings) -> None:
        self.app = app
        self.settings = settings
        self._buffered = BufferedBytes(settings.max_buffered_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self._answer(scope, receive, send)
        except ClientDisconnected:
            scope.setdefault("state", {})["client_gone"] = True
        except RequestError as error:
            headers = {"Retry-After": "1"} if error.status == 503 else None
            await error_response(error.status, str(error), error.param, headers)(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        limits = self.settings
        check_headers(scope, limits.max_header_bytes, limits.max_headers)
        body = await read_body(scope, receive, self._buffered, limits.max_body_bytes, limits.body_timeout)
        try:
            if body:
                check_content_type(scope)
                await check_depth(body, limits.max_json_depth)
            await run_until_disconnected(self.app, scope, body, receive, send, limits.request_timeout)
        finally:
            self._buffered.release(len(body))


def check_headers(scope: Scope, max_bytes: int, max_number: int) -> None:
    """Refuse a request whose target and headers are long or many.

    Raises:
        RequestError: 431.
    """
    headers = scope["headers"]
    size = sum([len(name) + len(value) for name, value in headers])
    size += len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    if size > max_bytes:
        raise RequestError(f"The request's headers have more than {max_bytes} bytes (--max-header-bytes).", status=431)
    if len(headers) > max_number:
        raise RequestError(f"The request has more than {max_number} headers (--max-headers).", status=431)


def check_content_type(scope: Scope) -> None:
    """Refuse a body whose headers do not say uncompressed JSON.

    A web page can send other types, and none, to any server without asking it first (CORS).

    Raises:
        RequestError: 415.
    """
    kind = (header(scope, "content-type") or "").partition(";")[0].strip().lower()
    main, _, sub = kind.partition("/")
    if main != "application" or not (sub == "json" or sub.endswith("+json")):
        raise RequestError("The body must be JSON: send Content-Type: application/json.", "content-type", 415)
    if (header(scope, "content-encoding") or "identity").lower() != "identity":
        raise RequestError("The body must not be compressed: send no Content-Encoding.", "content-encoding", 415)


async def run_until_disconnected(
    app: App, scope: Scope, body: bytes, receive: Receive, send: Send, seconds: float | None
) -> None:
    """Run the app on a whole body, until it is done, the client hangs up, or `seconds` pass before an answer begins.

    Raises:
        ClientDisconnected: the work was cancelled.
        RequestError: 504, the work was cancelled.
    """
    begun, complete = False, False
    gone = asyncio.Event()

    async def send_noted(message: Message) -> None:
        nonlocal begun, complete
        begun = True
        complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        await send(message)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        gone.set()

    if seconds is not None:
        scope.setdefault("state", {})["deadline"] = time.monotonic() + seconds
    handler = asyncio.create_task(_coroutine(app(scope, receive_whole(body, gone), send_noted)))
    watcher = asyncio.create_task(watch())
    patience = None if seconds is None else seconds + GRACE
    try:
        await asyncio.wait({handler, watcher}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if begun and not handler.done():  # what is late now is the network, which the connection bounds
            await asyncio.wait({handler, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if handler.done() or complete:  # a server says that the client is gone when it has the whole answer, too
            await handler
        elif watcher.done():
            raise ClientDisconnected
        else:
            raise RequestError(f"The request took longer than {seconds:g} s (--request-timeout).", status=504)
    finally:
        watcher.cancel()
        handler.cancel()
        await asyncio.gather(handler, watcher, return_exceptions=True)


async def _coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable
