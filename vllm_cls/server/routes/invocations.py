"""/invocations: SageMaker's one route, which takes a request of any other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from ...result_fields import CLASSIFY, LabelScore, fields_on_request
from ..errors import RequestError
from ..openapi import documented
from ..protocol.classify import ClassifyCandidates, ClassifyChat, ClassifyInput, ClassifyRequest, ClassifyResponse
from ..protocol.common import BaseRequest
from ..protocol.pooling import PoolingChat, PoolingInput, PoolingRequest, PoolingResponse
from ..protocol.score import SCORE_FORMS, RerankRequest, RerankResponse, ScoreRequest, ScoreResponse
from ..protocol.tei import PredictRequest, RankedIndex, RerankTexts
from ..requests.json_bodies import read
from ..served_model import ServedModel
from . import classify, pooling, score, tei

_OF_POOLING = ("task", "encoding_format", "embed_dtype", "endianness", "offsets")
_OF_CLASSIFY = fields_on_request(CLASSIFY)

Answer = Callable[[ServedModel, Request, Any], Awaitable[Response]]

_ANSWERS: dict[type[BaseRequest], Answer] = {
    ClassifyRequest: classify.answer,
    PoolingRequest: pooling.answer,
    ScoreRequest: score.score_answer,
    RerankRequest: score.rerank_answer,
    RerankTexts: score.rerank_answer,
    PredictRequest: tei.predict_answer,
}


def form(fields: dict[str, Any]) -> type[BaseRequest]:
    """Which route's request a body is, and in which form."""
    if "input" in fields or "messages" in fields:
        of_pooling = any(fields.get(name) is not None for name in _OF_POOLING)
        of_classify = fields.keys() & _OF_CLASSIFY or fields.get("dimensions") is not None
        return pooling.form(fields) if of_pooling and not of_classify else classify.form(fields)
    if "inputs" in fields:
        return tei.form(fields)
    if "query" in fields:
        return score.rerank_form(fields)
    try:
        return score.form(fields)
    except RequestError:
        raise RequestError("Give input or messages, query and documents, or two sides of texts to score.") from None


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["invocations"])
    of_tei = list[RankedIndex] | list[LabelScore] | list[list[LabelScore]]
    answers = ClassifyResponse | PoolingResponse | ScoreResponse | RerankResponse | of_tei
    forms: tuple[type[BaseRequest], ...] = (
        ClassifyInput,
        ClassifyCandidates,
        ClassifyChat,
        PoolingInput,
        PoolingChat,
        *SCORE_FORMS,
        RerankRequest,
        RerankTexts,
        PredictRequest,
    )

    @router.post("/invocations", **documented(answers, *forms, other_content=pooling.BINARY))
    async def invocations(request: Request) -> Response:
        """What the route of this form answers; `task` or an encoding makes a request one for /pooling."""
        body = await read(request, form)
        (answer,) = (each for kind, each in _ANSWERS.items() if isinstance(body, kind))
        return await answer(model, request, body)

    return router
