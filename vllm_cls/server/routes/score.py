"""/score and /rerank, where the model has one label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from ...calls.scoring import RankedDocument, rank
from ..errors import RequestError
from ..openapi import documented
from ..protocol.score import (
    SCORE_FORMS,
    RerankRequest,
    RerankResponse,
    RerankResult,
    RerankUsage,
    ScoreRequest,
    ScoreResponse,
    ScoreResponseData,
)
from ..protocol.tei import RankedIndex, RerankTexts
from ..requests.json_bodies import json_response, read
from ..requests.request_context import RequestContext, usage
from ..requests.request_prompts import check_pairs
from ..served_model import ServedModel

PATHS = ("/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank")
_PAIRS = {form: form.pair() for form in SCORE_FORMS}


def form(fields: dict[str, Any]) -> type[ScoreRequest]:
    """Which of its four pairs of names a body has."""
    found = [form for form, names in _PAIRS.items() if any(name in fields for name in names)]
    whole = [form for form, names in _PAIRS.items() if all(name in fields for name in names)]
    if not found:
        pairs = ", ".join(" and ".join(names) for names in _PAIRS.values())
        raise RequestError(f"Give two sides of texts: {pairs}.")
    return (whole or found)[0]


def rerank_form(fields: dict[str, Any]) -> type[RerankRequest | RerankTexts]:
    """Whether a body gives `documents` or, as Text Embeddings Inference has it, `texts`."""
    return RerankTexts if "texts" in fields and "documents" not in fields else RerankRequest


async def score_answer(model: ServedModel, request: Request, body: ScoreRequest) -> Response:
    """A score for each pair."""
    call = RequestContext.from_request(model, request, body)
    first, second = body.sides()
    check_pairs(model, first, second)
    outputs = await model.llm.score(first, second, **body.score_options, **call.options)
    data = [
        ScoreResponseData(index=index, object="score", score=each.outputs.score) for index, each in enumerate(outputs)
    ]
    if body.truncated:
        for score, output in zip(data, outputs, strict=True):
            score["truncated"] = output.truncated
    content: ScoreResponse = {**call.head("score"), "data": data, "usage": usage(outputs)}
    return await json_response(content, len(data))


async def rerank_answer(model: ServedModel, request: Request, body: RerankRequest | RerankTexts) -> Response:
    """The documents by falling score."""
    plain = body if isinstance(body, RerankRequest) else body.plain()
    call = RequestContext.from_request(model, request, plain)
    check_pairs(model, [plain.query], plain.documents)
    outputs = await model.llm.score(plain.query, plain.documents, **plain.score_options, **call.options)
    call.answered()
    ranked = rank(plain.documents, outputs, plain.top_n)
    content = _texts(ranked, body) if isinstance(body, RerankTexts) else _documents(ranked, body, call, outputs)
    return await json_response(content, len(ranked))


def _documents(
    ranked: Sequence[RankedDocument], body: RerankRequest, call: RequestContext, outputs: Sequence[Any]
) -> RerankResponse:
    results = []
    for each in ranked:
        result = RerankResult(index=each.index, relevance_score=each.relevance_score)
        if body.return_documents:
            result["document"] = {"text": body.documents[each.index], "multi_modal": None}
        results.append(result)
    tokens = usage(outputs)["prompt_tokens"]
    return RerankResponse(
        id=f"score-{call.request_id}",
        model=call.name,
        usage=RerankUsage(prompt_tokens=tokens, total_tokens=tokens),
        results=results,
    )


def _texts(ranked: Sequence[RankedDocument], body: RerankTexts) -> list[RankedIndex]:
    results = []
    for each in ranked:
        result = RankedIndex(index=each.index, score=each.relevance_score)
        if body.return_text:
            result["text"] = body.texts[each.index]
        results.append(result)
    return results


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["score"])

    async def score(request: Request) -> Response:
        """Scores of pairs of texts: one against one or many, or as many against as many."""
        return await score_answer(model, request, await read(request, form))

    async def rerank(request: Request) -> Response:
        """Documents in the order of their scores for a query."""
        return await rerank_answer(model, request, await read(request, rerank_form))

    for path in PATHS:
        if path.endswith("/score"):
            router.post(path, **documented(ScoreResponse, *SCORE_FORMS))(score)
        else:
            router.post(path, **documented(RerankResponse | list[RankedIndex], RerankRequest, RerankTexts))(rerank)
    return router
