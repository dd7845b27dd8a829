"""/invocations: SageMaker's one route, which takes a request of any other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from ...result_fields import CLASSIFY, fields_on_request
from ..errors import RequestError
from ..openapi import documented
from ..protocol.classify import ClassifyChat, ClassifyInput, ClassifyRequest, ClassifyResponse
from ..protocol.common import CommonRequest
from ..protocol.pooling import PoolingChat, PoolingInput, PoolingRequest, PoolingResponse
from ..protocol.score import SCORE_FORMS, RerankRequest, RerankResponse, ScoreRequest, ScoreResponse
from ..requests.json_bodies import read
from ..served_model import ServedModel
from . import classify, pooling, score

_OF_POOLING = ("task", "encoding_format", "embed_dtype", "endianness", "offsets")
_OF_CLASSIFY = fields_on_request(CLASSIFY)

Answer = Callable[[ServedModel, Request, Any], Awaitable[Response]]

_ANSWERS: dict[type[CommonRequest], Answer] = {
    ClassifyRequest: classify.answer,
    PoolingRequest: pooling.answer,
    ScoreRequest: score.score_answer,
    RerankRequest: score.rerank_answer,
}


def form(fields: dict[str, Any]) -> type[CommonRequest]:
    """Which route's request a body is, and in which form."""
    if "input" in fields or "messages" in fields:
        of_pooling = any(fields.get(name) is not None for name in _OF_POOLING)
        of_classify = fields.keys() & _OF_CLASSIFY or fields.get("dimensions") is not None
        return pooling.form(fields) if of_pooling and not of_classify else classify.form(fields)
    if "query" in fields:
        return RerankRequest
    try:
        return score.form(fields)
    except RequestError:
        raise RequestError("Give input or messages, query and documents, or two sides of texts to score.") from None


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["invocations"])
    answers = ClassifyResponse | PoolingResponse | ScoreResponse | RerankResponse
    forms: tuple[type[CommonRequest], ...] = (
        ClassifyInput,
        ClassifyChat,
        PoolingInput,
        PoolingChat,
        *SCORE_FORMS,
        RerankRequest,
    )

    @router.post("/invocations", **documented(answers, *forms, other_content=pooling.BINARY))
    async def invocations(request: Request) -> Response:
        """What the route of this form answers; `task` or an encoding makes a request one for /pooling."""
        body = await read(request, form)
        (answer,) = (each for kind, each in _ANSWERS.items() if isinstance(body, kind))
        return await answer(model, request, body)

    return router
