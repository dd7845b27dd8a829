"""/health and /ping."""

from __future__ import annotations

from fastapi import APIRouter, Response

from ..errors import error_response
from ..served_model import ServedModel


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["health"])

    @router.get("/health")
    @router.get("/ping")
    @router.post("/ping")
    async def health() -> Response:
        """200 while the model can run, 503 when it no longer can."""
        if not getattr(model.llm, "is_alive", True):
            return error_response(503, "The engine has died; restart the server.")
        return Response()

    return router
