"""/health, /ping, /ready and /metrics: what machines ask."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from ..errors import error_response
from ..openapi import ERRORS
from ..served_model import ServedModel


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["health"], responses=ERRORS, default_response_class=Response)

    @router.head("/health", include_in_schema=False)
    @router.head("/ping", include_in_schema=False)
    @router.get("/health")
    @router.get("/ping")
    @router.post("/ping")
    async def health() -> Response:
        """200 while the model can run, 503 when it no longer can."""
        if not model.llm.is_alive:
            return error_response(503, "The engine has died; restart the server.")
        return Response()

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready")
    async def ready(request: Request) -> Response:
        """200 while new requests are welcome, 503 once the server is stopping."""
        if getattr(request.app.state, "draining", False):
            return error_response(503, "The server is stopping.")
        return await health()

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Counts and times, in Prometheus' text format; not of texts where several keys open, but to a key for metrics."""
        metrics = request.app.state.metrics
        texts = request.scope["state"].get("sees_texts", True)
        return Response(metrics.render(texts), media_type=metrics.content_type)

    return router
