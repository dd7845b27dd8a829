"""/docs: a page that shows the routes and tries them, without the internet."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response

from ..served_model import ServedModel

_PAGE = Path(__file__).parent.parent / "docs.html"


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(include_in_schema=False)
    page = _PAGE.read_bytes()

    @router.get("/docs")
    async def docs() -> Response:
        """The page."""
        return Response(page, media_type="text/html")

    return router
