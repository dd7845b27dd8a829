"""`create_app`: routes, error handlers and middlewares put together."""

from __future__ import annotations

from fastapi import FastAPI

from .. import __version__
from ..async_llm import AsyncLLM
from ..llm import LLM
from .errors import add_error_handlers
from .routes import classify, health
from .served_model import ServedModel
from .settings import ServerSettings


def create_app(llm: AsyncLLM | LLM, settings: ServerSettings | None = None) -> FastAPI:
    """An ASGI app that answers vLLM's classification API with this model.

    Args:
        llm: stays the caller's to close.
    """
    model = ServedModel.of(llm, settings or ServerSettings())
    app = FastAPI(title="vllm-cls", version=__version__, redirect_slashes=False)
    app.state.model = model
    add_error_handlers(app)
    for routes in (classify.routes, health.routes):
        app.include_router(routes(model))
    return app
