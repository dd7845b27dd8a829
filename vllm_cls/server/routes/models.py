"""/v1/models, /v1/models/{name}, /version, /load."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException

from ... import __version__
from ..openapi import ERRORS
from ..protocol.models import ModelEntry, ModelList, RequestsInFlight, Version
from ..served_model import ServedModel


def entry(model: ServedModel, name: str, parent: str | None) -> ModelEntry:
    """One name of the model or of an adapter."""
    return ModelEntry(
        id=name,
        object="model",
        created=model.created,
        owned_by="vllm-cls",
        root=parent or model.names[0],
        parent=parent,
        max_model_len=model.llm.llm.max_model_len,
        permission=[],
    )


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["models"], responses=ERRORS)

    @router.get("/v1/models")
    async def models() -> ModelList:
        """The names that a request's `model` may have: the model's, and its adapters'."""
        data = [entry(model, name, None) for name in model.names]
        data += [entry(model, name, model.names[0]) for name in model.adapters]
        return ModelList(object="list", data=data)

    @router.get("/v1/models/{name:path}")
    async def one(name: str) -> ModelEntry:
        """One of these names."""
        if not name:  # of a request that is the model itself
            raise HTTPException(404)
        known = model.by_name[name]
        return entry(model, known.name if known.adapter else name, model.names[0] if known.adapter else None)

    @router.get("/version")
    async def version() -> Version:
        """The version of vllm-cls."""
        return Version(version=__version__)

    @router.get("/load")
    async def load() -> RequestsInFlight:
        """How many requests are in flight."""
        return RequestsInFlight(server_load=model.llm.load)

    return router
