"""The OpenAPI document of the routes, with the limits of the model and of the server in its schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..calls.scoring import ScoreOptions
from ..errors import ConfigError
from ..llm import LLM
from .errors import ErrorResponse, RequestError
from .middleware.auth import OPEN_PATHS
from .protocol import parts
from .protocol.classify import ClassifyCandidates, ClassifyRequest
from .protocol.prompts import ChatFields
from .protocol.score import PairRequest
from .served_model import ServedModel

ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorResponse, "description": "Any other status: what was wrong."}
}
_RUN_ERRORS = {
    400: "A bad value; `param` names the field.",
    404: "No such model.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too much is waiting; Retry-After says for how long.",
    500: "A fault of the server.",
    503: "Not ready, or shutting down.",
    504: "The request took too long.",
}
_REF = "#/components/schemas/{model}"
_MARK = "x-limit"
_REQUEST_ID = {
    "name": "X-Request-Id",
    "in": "header",
    "required": False,
    "description": "Comes back in the answer's id; wins over request_id.",
    "schema": {"type": "string"},
}

_forms: dict[str, type[BaseModel]] = {}
"""The forms of bodies that routes of this process take."""


def documented(
    response: Any, *requests: type[BaseModel], other_content: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Arguments of a router's decorator that say what a route takes and gives.

    Args:
        response: the type of its JSON.
        requests: the forms of its body.
        other_content: other media types of its answer.
    """
    _forms.update((each.__name__, each) for each in requests)
    forms = [{"$ref": _REF.format(model=each.__name__)} for each in requests]
    schema = forms[0] if len(forms) == 1 else {"anyOf": forms}
    errors = {
        status: {"model": ErrorResponse, "description": description} for status, description in _RUN_ERRORS.items()
    }
    good = {"model": response, **({"content": dict(other_content)} if other_content else {})}
    return {
        "responses": {200: good, **errors, **ERRORS},
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "parameters": [_REQUEST_ID],
        },
    }


def describe(app: FastAPI, model: ServedModel) -> None:
    """Set the app's `openapi` method; the document has this model's limits and is made at the first request for it."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app, model)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's way to replace it


def _described(app: FastAPI, model: ServedModel) -> dict[str, Any]:
    whole = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, servers=app.servers
    )
    there: dict[type[BaseModel], bool] = {
        ChatFields: model.chats,
        PairRequest: model.scores,
        ClassifyRequest: model.classifies,
        ClassifyCandidates: model.takes_candidates,
    }
    absent = tuple(kind for kind, is_there in there.items() if not is_there)
    _leave_out(whole["paths"], [name for name, each in _forms.items() if issubclass(each, absent)])
    named = json.dumps(whole["paths"])
    forms = [each for name, each in _forms.items() if f'"{_REF.format(model=name)}"' in named]
    _, schemas = models_json_schema([(each, "validation") for each in forms], ref_template=_REF)
    whole.setdefault("components", {}).setdefault("schemas", {}).update(schemas.get("$defs", {}))
    _fill_in(whole, _limits(model))
    if model.settings.api_keys:
        whole["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path in whole["paths"].keys() - OPEN_PATHS:
            for operation in whole["paths"][path].values():
                operation["security"] = [{"key": []}]
    return whole


def _leave_out(paths: Mapping[str, Any], names: Sequence[str]) -> None:
    """Take forms of these names from the bodies that have several."""
    refs = [{"$ref": _REF.format(model=name)} for name in names]
    for operation in (each for path in paths.values() for each in path.values() if "requestBody" in each):
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        if "anyOf" in schema:
            schema["anyOf"] = [each for each in schema["anyOf"] if each not in refs]


def _limits(model: ServedModel) -> dict[str, Mapping[str, Any]]:
    """What the marks in the schemas of requests stand for."""
    llm, settings = model.llm.llm, model.settings
    longest, trusted = llm.max_model_len, settings.trust_request_chat_template
    off = {"description": "Refused: the server runs without --trust-request-chat-template."}
    mm_off = {"description": "Refused: the server runs without --trust-request-mm-kwargs."}
    return {
        "token_id": {"maximum": llm.vocab_size - 1},
        "length": {"maximum": longest},
        "below_length": {"maximum": longest - 1},
        "inputs": {"maxItems": settings.max_inputs},
        "documents": {"maxItems": settings.max_inputs},
        "questions": {"maxProperties": settings.max_inputs},
        "task": {"type": "string", "enum": list(llm.supported_tasks)},
        "head_name": {"type": "string", "enum": list(llm.heads)} if llm.heads else {"type": "null"},
        "instruction": {} if takes_instruction(llm) else {"type": "null"},
        "content_part": parts.schema(readable(model)),
        "assets": {} if "image" in readable(model) else {"maxProperties": 0},
        "moderation_part": parts.schema(readable(model), ["image_url"], {"type": "string", "minLength": 1}),
        "moderation_categories": _one_of(llm.moderation_categories),
        "mm_kwargs": {"type": "object", **({} if settings.trust_request_mm_kwargs else {"maxProperties": 0, **mm_off})},
        "chat_template": {"type": "string"} if trusted else {"type": "null", **off},
        "chat_template_kwargs": {"type": "object"} if trusted else {"type": "object", "maxProperties": 0, **off},
    }


def _one_of(names: Sequence[str]) -> dict[str, Any]:
    """A list of some of these names; null where there are none."""
    return {"type": "array", "items": {"enum": list(names)}, "minItems": 1} if names else {"type": "null"}


def readable(model: ServedModel) -> tuple[str, ...]:
    """What conversations may hold beside texts."""
    try:
        return model.modalities if model.chats else ()
    except RequestError:  # which tells those who send images why
        return ()


def takes_instruction(llm: LLM) -> bool:
    """Whether the prompt of the model's pairs has a place for an instruction."""
    try:
        llm.score_processor(ScoreOptions(instruction="x"), [1])
    except ConfigError:
        return False
    return True


def _fill_in(schema: Any, limits: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace every mark by the limit of that name."""
    if isinstance(schema, dict):
        if isinstance(schema.get(_MARK), str):
            schema.update(limits[schema.pop(_MARK)])
        for each in schema.values():
            _fill_in(each, limits)
    elif isinstance(schema, list):
        for each in schema:
            _fill_in(each, limits)
