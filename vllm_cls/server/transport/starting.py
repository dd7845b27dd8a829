"""While a model loads, in the main thread: a small server in another says so, and SIGTERM ends the process."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ..asgi import Receive, Scope, Send
from ..errors import error_response
from ..middleware.stack import add_middleware
from ..observability.metrics import ServerMetrics
from ..settings import ServerSettings
from .lifecycle import config_of

RETRY_AFTER = 5
"""Seconds after which a client is told to ask again."""

_HANDOVER = 2.0
"""Seconds that the requests which have come so far may take, before the model's own server takes over."""


def loading_app(name: str, settings: ServerSettings, metrics: ServerMetrics) -> FastAPI:
    """An app behind the guards of the server to come, which answers every request 503, and says what is loading.

    Args:
        name: what clients call the model.
    """
    began = time.monotonic()
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.draining = True  # each answer closes its connection: the next one is the model's
    add_middleware(app, settings, metrics, None)

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        message = f"The model {name} has been loading for {time.monotonic() - began:.0f} s; ask again."
        await error_response(503, message, headers={"Retry-After": str(RETRY_AFTER)})(scope, receive, send)

    app.mount("/", refuse)
    return app


@contextmanager
def answering(
    app: FastAPI, settings: ServerSettings, listener: socket.socket, tls: ssl.SSLContext | None
) -> Iterator[None]:
    """Serve an app in a thread until the context ends; the socket stays open.

    The arguments are those of `lifecycle.run`.
    """
    server = _Meanwhile(config_of(app, settings, tls))
    thread = threading.Thread(target=server.run, args=([listener.dup()],), name="vllm_cls_loading", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


class _Meanwhile(uvicorn.Server):
    """uvicorn's server, whose end no client notices: whoever connects meanwhile waits for the server after it."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        until = time.monotonic() + _HANDOVER
        while self.server_state.connections and time.monotonic() < until:
            await asyncio.sleep(0.01)
        self.config.timeout_graceful_shutdown = 1  # for those that have not sent a whole request
        await super().shutdown(sockets)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit(0) within the context, so that all that is open is closed; a second one kills."""

    def end(sig: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
