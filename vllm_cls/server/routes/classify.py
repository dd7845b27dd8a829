"""/classify."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from ..openapi import documented
from ..protocol.classify import (
    ClassifyChat,
    ClassifyInput,
    ClassifyRequest,
    ClassifyResponse,
    classification,
    numbers_in,
)
from ..protocol.common import usage
from ..requests.json_bodies import json_response, read
from ..requests.request_context import RequestContext
from ..requests.request_prompts import prompts_of
from ..served_model import ServedModel


def form(fields: dict[str, Any]) -> type[ClassifyRequest]:
    """Which form a body has."""
    return ClassifyChat if "messages" in fields else ClassifyInput


async def answer(model: ServedModel, request: Request, body: ClassifyRequest) -> Response:
    """Probabilities of the labels for each prompt."""
    call = RequestContext.from_request(model, request, body)
    outputs = await model.llm.classify(await prompts_of(model, request, body), **call.options)
    threshold = model.settings.threshold
    data = [classification(index, each, body, threshold) for index, each in enumerate(outputs)]
    content: ClassifyResponse = {**call.head("classify"), "data": data, "usage": usage(outputs)}
    return await json_response(content, sum(map(numbers_in, data)))


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["classify"])

    @router.post("/classify", **documented(ClassifyResponse, ClassifyInput, ClassifyChat))
    async def classify(request: Request) -> Response:
        """Probabilities of the labels for each input, or for a conversation."""
        return await answer(model, request, await read(request, form))

    return router
