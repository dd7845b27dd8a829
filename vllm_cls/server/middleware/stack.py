"""The order of the middlewares."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from ..observability.metrics import ServerMetrics
from ..observability.tracing import Tracing
from ..settings import ServerSettings
from .auth import AllowHosts, RequireKey
from .instrumentation import Instrumentation, add_last_error_handler
from .limits import Limits


def add_middleware(app: FastAPI, settings: ServerSettings, metrics: ServerMetrics, tracing: Tracing | None) -> None:
    """Guard every route, mount and socket of an app, those that are added later too.

    The last one added sees a request first: what is refused is counted and logged like everything else, and a web page of
    an allowed origin can read why it was refused.
    """
    app.add_middleware(Limits, settings=settings)
    if settings.api_keys:
        app.add_middleware(RequireKey, keys=settings.api_keys, metrics_keys=settings.metrics_keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    if settings.allowed_hosts:
        app.add_middleware(AllowHosts, names=settings.allowed_hosts)
    app.add_middleware(Instrumentation, metrics=metrics, tracing=tracing)
    add_last_error_handler(app)
