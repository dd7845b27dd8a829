"""/pooling."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from ...outputs import PoolingRequestOutput
from ..errors import RequestError
from ..openapi import documented
from ..protocol.encoding import to_bytes
from ..protocol.pooling import PoolingChat, PoolingData, PoolingInput, PoolingRequest, PoolingResponse
from ..protocol.prompts import EncodingFields
from ..requests.json_bodies import json_response, read
from ..requests.request_context import RequestContext, usage
from ..requests.request_prompts import prompts_of
from ..served_model import ServedModel

BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

_LONGEST_HEADER = 60_000
"""Characters that every client takes; Python's own refuses lines of 65,536."""


def form(fields: dict[str, Any]) -> type[PoolingRequest]:
    """Which form a body has."""
    if "data" in fields and "input" not in fields:
        raise RequestError("data is for vLLM's IO processors, of which there are none here; use input.", "data")
    return PoolingChat if "messages" in fields else PoolingInput


async def answer(model: ServedModel, request: Request, body: PoolingRequest) -> Response:
    """A tensor for each prompt, as numbers or bytes."""
    call = RequestContext.from_request(model, request, body)
    task = task_of(model, body.task)
    if body.offsets and body.encoding_format in ("bytes", "bytes_only"):
        raise RequestError("offsets have no place among bytes; take float or base64.", "offsets")
    outputs = await model.llm.encode(await prompts_of(model, request, body), pooling_task=task, **call.options)
    numbers = sum(each.outputs.data.numel() for each in outputs)
    if body.encoding_format in ("bytes", "bytes_only"):
        return await asyncio.to_thread(bytes_response, call, body, outputs)
    data = await asyncio.to_thread(_written, body, outputs)
    content: PoolingResponse = {**call.head("pooling"), "data": data, "usage": usage(outputs)}
    return await json_response(content, numbers)


def task_of(model: ServedModel, task: str | None) -> str:
    """The pooling task of a request.

    Raises:
        RequestError: it is none that this model does.
    """
    supported = model.llm.llm.supported_tasks
    if task in ("score", "encode"):
        raise RequestError(f"task={task!r} was removed; use one of {list(supported)}.", "task")
    if task is not None and task not in supported:
        raise RequestError(f"Unsupported task: {task[:50]!r} Supported tasks: {list(supported)}.", "task")
    return task or supported[0]


def _written(body: PoolingRequest, outputs: Sequence[PoolingRequestOutput]) -> list[PoolingData]:
    def pooled(index: int, output: PoolingRequestOutput) -> PoolingData:
        written = PoolingData(index=index, object="pooling", data=encoded(body, output))
        if body.offsets:
            written["offsets"] = output.offsets
        return written

    return [pooled(index, each) for index, each in enumerate(outputs)]


def encoded(body: EncodingFields, output: PoolingRequestOutput) -> Any:
    """The numbers of one prompt as a list, or in base64."""
    if body.encoding_format in (None, "float"):
        return output.outputs.data.tolist()
    return base64.b64encode(to_bytes(output.outputs.data, body.embed_dtype, body.endianness)).decode()


def bytes_response(call: RequestContext, body: EncodingFields, outputs: Sequence[PoolingRequestOutput]) -> Response:
    """All rows one behind the other; what they are is in the header `metadata`, unless only bytes are asked for."""
    parts = [to_bytes(each.outputs.data, body.embed_dtype, body.endianness) for each in outputs]
    headers = {}
    if body.encoding_format == "bytes":
        end, data = 0, []
        for index, (part, each) in enumerate(zip(parts, outputs, strict=True)):
            start, end = end, end + len(part)
            data.append(
                {
                    "index": index,
                    "embed_dtype": body.embed_dtype or "float32",
                    "endianness": body.endianness or "native",
                    "start": start,
                    "end": end,
                    "shape": list(each.outputs.data.shape),
                }
            )
        head, tokens = call.head("pooling"), usage(outputs)["prompt_tokens"]
        described = {
            "id": head["id"],
            "created": head["created"],
            "model": head["model"],
            "data": data,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        headers["metadata"] = json.dumps(described)
        if len(headers["metadata"]) > _LONGEST_HEADER:
            raise RequestError(
                f"What {len(parts)} tensors are does not fit a header; send fewer, or take base64 or bytes_only.",
                "encoding_format",
            )
    return Response(b"".join(parts), headers=headers, media_type="application/octet-stream")


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["pooling"])

    @router.post("/pooling", **documented(PoolingResponse, PoolingInput, PoolingChat, other_content=BINARY))
    async def pooling(request: Request) -> Response:
        """What the model makes of each input: probabilities, those of every token, or an embedding."""
        return await answer(model, request, await read(request, form))

    return router
