"""/classify."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from ...outputs import ClassificationOutput, ClassificationRequestOutput
from ...result_fields import LabelScore
from ..openapi import documented
from ..protocol.classify import (
    ClassificationData,
    ClassifyCandidates,
    ClassifyChat,
    ClassifyInput,
    ClassifyRequest,
    ClassifyResponse,
    HeadAnswer,
)
from ..requests.json_bodies import json_response, read
from ..requests.request_context import RequestContext, usage
from ..requests.request_prompts import check_candidates, prompts_of
from ..served_model import ServedModel

_OF_CANDIDATES = ("candidate_labels", "hypothesis_template", "multi_label")


def form(fields: dict[str, Any]) -> type[ClassifyRequest]:
    """Which form a body has."""
    if not fields.keys().isdisjoint(_OF_CANDIDATES):
        return ClassifyCandidates
    return ClassifyChat if "messages" in fields else ClassifyInput


async def answer(model: ServedModel, request: Request, body: ClassifyRequest) -> Response:
    """Probabilities of the labels for each prompt."""
    call = RequestContext.from_request(model, request, body)
    prompts, options = await prompts_of(model, request, body), call.options
    if isinstance(body, ClassifyCandidates):
        check_candidates(model, prompts, body.candidate_labels, body.hypothesis_template)
        options |= {name: getattr(body, name) for name in _OF_CANDIDATES}
    outputs = await model.llm.classify(prompts, **options)
    threshold = model.settings.threshold
    data = [_data(index, each, body, threshold) for index, each in enumerate(outputs)]
    content: ClassifyResponse = {**call.head("classify"), "data": data, "usage": usage(outputs)}
    return await json_response(content, sum(map(_numbers_in, data)))


def _data(
    index: int, output: ClassificationRequestOutput, request: ClassifyRequest, threshold: float | None
) -> ClassificationData:
    """One entry of `data`.

    Args:
        threshold: from which probability the label of a model of one label is given; None gives none.
    """
    answer = _of_head(output.outputs, request, threshold)
    found: ClassificationData = {"index": index, **answer}  # type: ignore[typeddict-item]  # it wants the other keys too
    if request.truncated:
        found["truncated"] = output.truncated
    if request.heads:
        found["heads"] = {name: _of_head(each, request, threshold) for name, each in output.heads.items()}
    return found


def _numbers_in(answer: ClassificationData) -> int:
    """How many numbers there are to write."""
    return answer["num_classes"] + sum([each["num_classes"] for each in answer.get("heads", {}).values()])


def _of_head(answer: ClassificationOutput, request: ClassifyRequest, threshold: float | None) -> HeadAnswer:
    label, num_classes = answer.label, len(answer.probs)
    sure = answer.probabilities  # whatever `probs` holds
    if num_classes == 1 and threshold is not None and sure is not None and sure[0] >= threshold:
        label = _names(answer)[0]
    found = HeadAnswer(label=label, probs=answer.probs, num_classes=num_classes)
    if request.top_k is not None:
        found["top_k"] = ranked_labels(answer)[: request.top_k]
    if request.scores:
        found["scores"] = answer.scores
    if request.logits:
        found["logits"] = answer.logits
    return found


def ranked_labels(answer: ClassificationOutput) -> list[LabelScore]:
    """Each label with its entry of `probs`, the highest first."""
    ranked = sorted(zip(_names(answer), answer.probs, strict=True), key=lambda item: -item[1])
    return [LabelScore(label=name, score=score) for name, score in ranked]


def _names(answer: ClassificationOutput) -> list[str]:
    return [answer.id2label.get(each, f"LABEL_{each}") for each in range(len(answer.probs))]


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["classify"])

    @router.post("/classify", **documented(ClassifyResponse, ClassifyInput, ClassifyCandidates, ClassifyChat))
    async def classify(request: Request) -> Response:
        """Probabilities of the labels for each input, or for a conversation."""
        return await answer(model, request, await read(request, form))

    return router
