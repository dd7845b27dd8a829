"""/classify."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, with_config
from typing_extensions import NotRequired, TypedDict

from ...outputs import ClassificationOutput, ClassificationRequestOutput
from ...result_fields import LabelScore, add_descriptions
from .common import WHOLE, ResponseHeader, UsageInfo
from .prompts import ChatRequest, CompletionRequest, EncodingFields, PromptRequest


class ClassifyRequest(EncodingFields, PromptRequest):
    """Options of /classify beyond vLLM's; the response is always JSON, whatever encoding is named."""

    without_meaning: ClassVar[frozenset[str]] = PromptRequest.without_meaning | {"dimensions"}

    task: Literal["classify"] | None = Field(None, description="Without effect.")
    top_k: (
        Annotated[int, Field(ge=1, description="So many labels with their scores, the highest first."), WHOLE] | None
    ) = None
    scores: bool = Field(False, description="A map from labels to scores.")
    logits: bool = Field(False, description="The logits, in the order of the labels' indices.")
    truncated: bool = Field(False, description="Whether the prompt was cut.")
    heads: bool = Field(False, description="The answers of all heads that have names; they are from one forward.")


class ClassifyInput(ClassifyRequest, CompletionRequest):
    """Texts, pairs of texts, or token ids, to classify each."""


class ClassifyChat(ChatRequest, ClassifyRequest):
    """A conversation to classify."""


@with_config(json_schema_extra=add_descriptions)
class HeadAnswer(TypedDict):
    """The result of one head for a prompt; `probs` holds what its activation gives, and logits where use_activation is false."""

    label: str | None
    probs: list[float]
    num_classes: int
    top_k: NotRequired[list[LabelScore]]
    scores: NotRequired[dict[str, float]]
    logits: NotRequired[list[float]]


@with_config(json_schema_extra=add_descriptions)
class ClassificationData(HeadAnswer):
    """The answer to one prompt: of the default head, or of the one that was asked for."""

    index: int
    truncated: NotRequired[bool]
    heads: NotRequired[dict[str, HeadAnswer]]


class ClassifyResponse(ResponseHeader):
    """The answers, in the order of the prompts."""

    data: list[ClassificationData]
    usage: UsageInfo


def classification(
    index: int, output: ClassificationRequestOutput, request: ClassifyRequest, threshold: float | None
) -> ClassificationData:
    """One entry of `data`.

    Args:
        threshold: from which probability the label of a model of one label is given; None gives none.
    """
    answer = _answer(output.outputs, request, threshold)
    found: ClassificationData = {"index": index, **answer}  # type: ignore[typeddict-item]  # it wants the other keys too
    if request.truncated:
        found["truncated"] = output.truncated
    if request.heads:
        found["heads"] = {name: _answer(each, request, threshold) for name, each in output.heads.items()}
    return found


def numbers_in(answer: ClassificationData) -> int:
    """How many numbers there are to write."""
    return answer["num_classes"] + sum([each["num_classes"] for each in answer.get("heads", {}).values()])


def _answer(answer: ClassificationOutput, request: ClassifyRequest, threshold: float | None) -> HeadAnswer:
    label, num_classes = answer.label, len(answer.probs)
    names = [answer.id2label.get(each, f"LABEL_{each}") for each in range(num_classes)]
    sure = answer.probabilities  # whatever `probs` holds
    if num_classes == 1 and threshold is not None and sure is not None and sure[0] >= threshold:
        label = names[0]
    found = HeadAnswer(label=label, probs=answer.probs, num_classes=num_classes)
    if request.top_k is not None:
        ranked = sorted(zip(names, answer.probs, strict=True), key=lambda item: -item[1])[: request.top_k]
        found["top_k"] = [LabelScore(label=name, score=score) for name, score in ranked]
    if request.scores:
        found["scores"] = answer.scores
    if request.logits:
        found["logits"] = answer.logits
    return found
