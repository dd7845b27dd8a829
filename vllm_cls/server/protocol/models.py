"""/v1/models, /version, /load."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict


class ModelEntry(TypedDict):
    """A name that a request's `model` may have."""

    id: str
    object: str
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    permission: list[dict[str, Any]]


class ModelList(TypedDict):
    """All of them."""

    object: str
    data: list[ModelEntry]


class Version(TypedDict):
    """Of vllm-cls."""

    version: str


class RequestsInFlight(TypedDict):
    """Requests in flight."""

    server_load: int
