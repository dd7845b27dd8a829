"""`create_app`: builds the ASGI app of routes, error handlers and middlewares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter, FastAPI

from .. import __version__
from ..async_llm import AsyncLLM
from ..llm import LLM
from ..registry import registry
from .errors import add_error_handlers
from .middleware.stack import add_middleware
from .observability.metrics import ServerMetrics
from .observability.tracing import Tracing
from .openapi import describe
from .requests import sandbox
from .requests.media import policy_of
from .routes import (
    classify,
    decisions,
    description,
    docs,
    embeddings,
    health,
    invocations,
    models,
    moderations,
    page,
    pooling,
    score,
    tei,
    tokenize,
)
from .served_model import ServedModel
from .settings import ServerSettings


def create_app(llm: AsyncLLM | LLM, settings: ServerSettings | None = None) -> FastAPI:
    """An ASGI app that answers vLLM's classification API with this model.

    Args:
        llm: stays the caller's to close.

    Raises:
        ConfigError: a setting is wrong.
    """
    settings = settings or ServerSettings()
    if settings.limit_mm_per_prompt:
        policy_of(settings)  # what is wrong with it is told now
    model = ServedModel.from_llm(llm, settings)
    app = FastAPI(
        title="vllm-cls",
        version=__version__,
        root_path=settings.root_path,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.model = model
    app.state.absent = _absent(model)
    app.state.metrics = metrics = ServerMetrics.for_engine(model.llm)
    tracing = Tracing.to(settings.otlp_traces_endpoint) if settings.otlp_traces_endpoint else None
    if settings.trust_request_chat_template:
        sandbox.prepare()
    add_error_handlers(app)
    add_middleware(app, settings, metrics, tracing)
    for routes in _families(model):
        app.include_router(routes(model))
    for router in registry().call("vcls_server_routes", model=model):
        app.include_router(router)
    describe(app, model)
    return app


def open_app(model: str, settings: ServerSettings | None = None, **llm_options: Any) -> FastAPI:
    """`create_app` of a model that is opened for it, in a process that serves nothing else.

    Args:
        model: as for `LLM`.
        llm_options: options of `AsyncLLM`.
    """
    return create_app(AsyncLLM(model, telemetry=ServerMetrics(), **llm_options), settings)


def _families(model: ServedModel) -> Iterator[Callable[[ServedModel], APIRouter]]:
    """The routers of the routes that this model supports, as in vLLM."""
    if model.classifies:
        yield classify.routes
        if model.why_not_moderated is None:
            yield moderations.routes
    if model.scores:
        yield score.routes
    if model.llm.llm.decides:
        yield decisions.routes
    if "embed" in model.llm.llm.supported_tasks:
        yield embeddings.routes
    yield from (pooling.routes, invocations.routes, tei.routes, tokenize.routes, models.routes, description.routes)
    yield from (health.routes, docs.routes, page.routes)


def _absent(model: ServedModel) -> dict[str, str]:
    """The message for a route that this model does not support."""
    llm, absent = model.llm.llm, {}
    if not llm.decides:
        why = "the model was not opened for decisions; serve a language model with --convert decide."
        absent = dict.fromkeys(decisions.PATHS, why)
    if not model.classifies:
        does = " and ".join(llm.supported_tasks)
        why = f"this model does {does} alone, and gives no label and no score of a text; use /pooling."
        return absent | dict.fromkeys(("/classify", "/predict", moderations.PATH, *score.PATHS), why)
    if model.why_not_moderated is not None:
        absent[moderations.PATH] = model.why_not_moderated
    if model.scores:
        return absent
    why = f"a score is the answer of a model of one label, and this one has {llm.num_labels}."
    return absent | dict.fromkeys(score.PATHS, why)
