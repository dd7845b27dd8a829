"""Runs a server until a signal, upon which it drains, or until its engine dies."""

from __future__ import annotations

import gc
import math
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from ..observability.logs import logger
from ..settings import ServerSettings
from .connection import ConnectionLimits, connection_class
from .tls import secured

GOODBYE = 0.5
"""Seconds in which a stopping server goes on taking requests, and tells each client to close its connection."""

ENGINE_DIED = 1
"""Exit code."""


class Server(uvicorn.Server):
    """uvicorn's server, which ends in one of two ways: a signal, or the death of the engine.

    Args:
        is_alive: whether the engine is.
        shutdown_timeout: seconds from the signal to the end of the process.
    """

    def __init__(
        self, config: uvicorn.Config, app: FastAPI, is_alive: Callable[[], bool], shutdown_timeout: float
    ) -> None:
        super().__init__(config)
        self.exit_code = 0
        self._app = app
        self._is_alive = is_alive
        self._shutdown_timeout = shutdown_timeout
        self._exit_at: float | None = None
        self._unlogged_signal: signal.Signals | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends the process at once.

        Nothing is logged here: Python may call this while a line is being written to stderr, where writing another
        one raises `RuntimeError`.
        """
        if self._exit_at is not None:
            os._exit(128 + sig)
        self._unlogged_signal = signal.Signals(sig)
        self._drain()

    async def on_tick(self, counter: int) -> bool:
        if self._unlogged_signal is not None:
            logger.info("%s: finishing what is in flight", self._unlogged_signal.name)
            self._unlogged_signal = None
        if self._exit_at is None and not self._is_alive():
            logger.error("the engine died: the server ends")
            self.exit_code = ENGINE_DIED
            self._drain()
        if self._exit_at is not None and time.monotonic() >= self._exit_at:
            self.should_exit = True
        return await super().on_tick(counter)

    def _drain(self) -> None:
        self._app.state.draining = True
        self._exit_at = time.monotonic() + min(GOODBYE, self._shutdown_timeout / 4)
        # Whatever does not end by itself, such as a long batch that nobody waits for any more, ends with the process.
        deadline = threading.Timer(self._shutdown_timeout, lambda: os._exit(self.exit_code))
        deadline.daemon = True
        deadline.start()


def config_of(app: FastAPI, settings: ServerSettings, tls: ssl.SSLContext | None) -> uvicorn.Config:
    """uvicorn's options: our connection, with its limits, and one event loop, whatever else is installed."""
    limits = ConnectionLimits(settings.header_timeout, settings.write_timeout, settings.max_connections)
    connection = connection_class(limits)
    connect: Any = (
        connection if tls is None else secured(connection, tls)
    )  # any callable, whatever uvicorn's annotation
    return uvicorn.Config(
        app,
        http=connect,
        loop="asyncio",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=max(1, math.floor(settings.shutdown_timeout - 3 * GOODBYE)),
        h11_max_incomplete_event_size=settings.max_header_bytes,
    )


def run(
    app: FastAPI,
    settings: ServerSettings,
    listener: socket.socket,
    is_alive: Callable[[], bool],
    tls: ssl.SSLContext | None = None,
) -> int:
    """Serve until a signal comes or the engine dies.

    Args:
        listener: from `listening`.
        is_alive: whether the engine is.
        tls: from `tls.server_context`; None is plain HTTP.

    Returns:
        The exit code: 0 after a signal, 1 if the engine died.
    """
    server = Server(config_of(app, settings, tls), app, is_alive, settings.shutdown_timeout)
    gc.collect()
    gc.freeze()  # the model's objects stay: no collection looks at them again
    server.run(sockets=[listener])
    return server.exit_code
