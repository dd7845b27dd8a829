"""/predict and /info, as Text Embeddings Inference has them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from ... import __version__
from ...result_fields import LabelScore
from ..openapi import ERRORS, documented
from ..protocol.tei import ClassifierLabels, Info, PredictRequest
from ..requests.json_bodies import json_response, read
from ..requests.request_context import RequestContext
from ..requests.request_prompts import prompts_of
from ..served_model import ServedModel
from .classify import ranked_labels


def form(fields: dict[str, Any]) -> type[PredictRequest]:
    """The one form."""
    return PredictRequest


async def predict_answer(model: ServedModel, request: Request, body: PredictRequest) -> Response:
    """All labels of each prompt with their scores, the highest first."""
    plain = body.plain()
    call = RequestContext.from_request(model, request, plain)
    outputs = await model.llm.classify(await prompts_of(model, request, plain), **call.options)
    call.answered()
    found = [ranked_labels(each.outputs) for each in outputs]
    return await json_response(found[0] if body.inputs.single else found, sum(map(len, found)))


def info(model: ServedModel) -> Info:
    """What the server runs."""
    described = model.llm.llm.describe()
    return Info(
        model_id=model.names[0],
        model_sha=None,
        model_dtype=described["dtype"],
        model_type=_kind(model, described),
        max_concurrent_requests=model.llm.max_queued_requests,
        max_input_length=described["max_model_len"],
        max_batch_tokens=described["max_num_batched_tokens"],
        max_batch_requests=None,
        max_client_batch_size=model.settings.max_inputs,
        auto_truncate=False,
        tokenization_workers=1,
        version=__version__,
        sha=None,
        docker_label=None,
    )


def _kind(model: ServedModel, described: dict[str, Any]) -> dict[str, ClassifierLabels | dict[str, str]]:
    if not model.classifies:
        return {"embedding": {"pooling": str(described["pooling"]).lower()}}
    labels = model.llm.llm.head().id2label
    both = ClassifierLabels(
        id2label={str(index): name for index, name in labels.items()},
        label2id={name: index for index, name in labels.items()},
    )
    return {"reranker" if len(labels) == 1 else "classifier": both}


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["text embeddings inference"])

    if model.classifies:

        @router.post("/predict", **documented(list[LabelScore] | list[list[LabelScore]], PredictRequest))
        async def predict(request: Request) -> Response:
            """All labels of each text or pair with their scores, the highest first."""
            return await predict_answer(model, request, await read(request, form))

    @router.get("/info", responses=ERRORS)
    async def show_info() -> Info:
        """What the server runs."""
        return info(model)

    return router
