"""/v1/embeddings."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from ..openapi import documented
from ..protocol.embeddings import EmbeddingChat, EmbeddingData, EmbeddingInput, EmbeddingRequest, EmbeddingResponse
from ..requests.json_bodies import json_response, read
from ..requests.request_context import RequestContext, usage
from ..requests.request_prompts import prompts_of
from ..served_model import ServedModel
from .pooling import BINARY, bytes_response, encoded


def form(fields: dict[str, Any]) -> type[EmbeddingRequest]:
    """Which form a body has."""
    return EmbeddingChat if "messages" in fields else EmbeddingInput


async def answer(model: ServedModel, request: Request, body: EmbeddingRequest) -> Response:
    """An embedding of each prompt, as numbers or bytes."""
    call = RequestContext.from_request(model, request, body)
    prompts = await prompts_of(model, request, body)
    options = {**call.options, "pooling_params": body.pooling_params()}
    outputs = await model.llm.encode(prompts, pooling_task="embed", **options)
    if body.encoding_format in ("bytes", "bytes_only"):
        return await asyncio.to_thread(bytes_response, call, body, outputs)

    def written() -> list[EmbeddingData]:
        found = [encoded(body, each) for each in outputs]
        return [EmbeddingData(index=index, object="embedding", embedding=each) for index, each in enumerate(found)]

    data = await asyncio.to_thread(written)
    content: EmbeddingResponse = {**call.head("embd"), "data": data, "usage": usage(outputs)}
    return await json_response(content, sum(each.outputs.data.numel() for each in outputs))


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["embeddings"])

    @router.post("/v1/embeddings", **documented(EmbeddingResponse, EmbeddingInput, EmbeddingChat, other_content=BINARY))
    async def embeddings(request: Request) -> Response:
        """An embedding of each input, or of a conversation."""
        return await answer(model, request, await read(request, form))

    return router
