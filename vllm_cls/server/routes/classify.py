"""/classify."""

from __future__ import annotations

import asyncio
import time
import uuid

from fastapi import APIRouter, Request, Response

from ..bodies import json_response, read
from ..protocol.classify import ClassifyRequest, ClassifyResponse
from ..served_model import ServedModel


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["classify"])

    @router.post("/classify", responses={200: {"model": ClassifyResponse}})
    async def classify(request: Request) -> Response:
        """Probabilities of the labels for each input."""
        asked = await read(request, ClassifyRequest.read)
        adapter = model.adapter(asked.model)
        outputs = await asyncio.gather(
            *(
                model.llm.classify(
                    prompt,
                    pooling_params=asked.pooling_params,
                    lora_request=adapter,
                    tokenization_kwargs=asked.tokenization,
                )
                for prompt in asked.prompts
            )
        )
        tokens = sum(len(each.prompt_token_ids) for each in outputs)
        answer = ClassifyResponse(
            id=f"classify-{asked.request_id or uuid.uuid4().hex}",
            object="list",
            created=int(time.time()),
            model=model.name_of(adapter),
            data=[
                {
                    "index": index,
                    "label": each.outputs.label,
                    "probs": each.outputs.probs,
                    "num_classes": each.outputs.num_classes,
                }
                for index, each in enumerate(outputs)
            ],
            usage={
                "prompt_tokens": tokens,
                "total_tokens": tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        )
        return json_response(answer)

    return router
