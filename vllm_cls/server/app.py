"""`create_app`: routes, error handlers and middlewares put together."""

from __future__ import annotations

from fastapi import FastAPI

from .. import __version__
from ..async_llm import AsyncLLM
from ..llm import LLM
from .errors import add_error_handlers
from .metrics import Metrics
from .middleware import add_middleware
from .routes import classify, health
from .served_model import ServedModel
from .settings import ServerSettings
from .tracing import Tracing


def create_app(llm: AsyncLLM | LLM, settings: ServerSettings | None = None) -> FastAPI:
    """An ASGI app that answers vLLM's classification API with this model.

    Args:
        llm: stays the caller's to close.
    """
    settings = settings or ServerSettings()
    model = ServedModel.of(llm, settings)
    app = FastAPI(title="vllm-cls", version=__version__, redirect_slashes=False)
    app.state.model = model
    app.state.metrics = metrics = Metrics.of(model.llm)
    tracing = Tracing.to(settings.otlp_traces_endpoint) if settings.otlp_traces_endpoint else None
    add_error_handlers(app)
    add_middleware(app, settings, metrics, tracing)
    for routes in (classify.routes, health.routes):
        app.include_router(routes(model))
    return app
