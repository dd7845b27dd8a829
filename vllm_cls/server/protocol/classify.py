"""/classify."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, with_config
from typing_extensions import NotRequired, TypedDict

from ...result_fields import LabelScore, add_descriptions
from .common import WHOLE, ResponseHeader, UsageInfo
from .prompts import ChatRequest, CompletionRequest, EncodingFields, PromptRequest, TextsInput


class ClassifyRequest(EncodingFields, PromptRequest):
    """Options of /classify beyond vLLM's; the response is always JSON, whatever encoding is named."""

    ignored_fields: ClassVar[frozenset[str]] = PromptRequest.ignored_fields | {"dimensions"}

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


class ClassifyCandidates(ClassifyRequest):
    """Texts to classify by labels that the request names, in place of the model's own: one of natural language inference."""

    params = {None: "input"}

    input: TextsInput
    candidate_labels: Annotated[
        list[Annotated[str, Field(min_length=1)]], Field(min_length=1, json_schema_extra={"uniqueItems": True})
    ]
    hypothesis_template: Annotated[
        str, Field(pattern=r"^[^{}]*\{\}[^{}]*$", description="{} is the label's place.")
    ] = "This example is {}."
    multi_label: bool = Field(False, description="Each label is true or not, whatever the others are.")
    use_activation: None = None
    head_name: None = None

    def prompts(self) -> list[Any]:
        return [self.input] if isinstance(self.input, str) else list(self.input)


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
