"""/score and /rerank: pairs of texts and their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, with_config
from typing_extensions import NotRequired, TypedDict

from ...result_fields import add_descriptions
from ..errors import RequestError
from .common import WHOLE, CommonRequest, EmptyObject, ResponseHeader, UsageInfo
from .parts import MediaPart, read_content
from .prompts import NO_PROMPT, TextPart


class Document(BaseModel):
    """A text, as Cohere and Jina write it."""

    model_config = ConfigDict(extra="forbid")

    text: str


class Content(BaseModel):
    """A text, as vLLM writes what may hold images too."""

    model_config = ConfigDict(extra="forbid")

    content: Annotated[list[TextPart], Field(min_length=1)]


_Text = str | Document | Content


def _read_text(value: Any, info: ValidationInfo) -> str:
    name = str(info.field_name)
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value.keys() == {"text"} and isinstance(value["text"], str):
        return str(value["text"])
    if (
        isinstance(value, dict)
        and value.keys() == {"content"}
        and isinstance(value["content"], list)
        and value["content"]
    ):
        content = read_content(value["content"], name, name)
        if isinstance(content, str):
            return content
        kind = next(each.kind for each in content if isinstance(each, MediaPart))
        raise RequestError(f"{name}: scores are of texts; there is a part of type {kind!r}.", name)
    raise RequestError(f'{name} takes texts: "…", {{"text": "…"}} or {{"content": [{{"type": "text", …}}]}}.', name)


def _read_texts(value: Any, info: ValidationInfo) -> list[str]:
    if not isinstance(value, list):
        return [_read_text(value, info)]
    if not value:
        raise RequestError(NO_PROMPT, str(info.field_name))
    return [_read_text(each, info) for each in value]


Text = Annotated[str, PlainValidator(_read_text, json_schema_input_type=_Text)]
Texts = Annotated[
    list[str],
    PlainValidator(
        _read_texts,
        json_schema_input_type=_Text
        | Annotated[list[_Text], Field(min_length=1, json_schema_extra={"x-limit": "documents"})],
    ),
]


_Instruction = Annotated[str, Field(json_schema_extra={"x-limit": "instruction"})]


class Instruction(BaseModel):
    """The variables of a score template that a request may set."""

    model_config = ConfigDict(extra="forbid", strict=True)

    instruction: _Instruction | None = None


class PairRequest(CommonRequest):
    """Common fields of /score and /rerank."""

    max_tokens_per_query: Annotated[int, Field(ge=0, json_schema_extra={"x-limit": "below_length"}), WHOLE] = 0
    max_tokens_per_doc: Annotated[int, Field(ge=0, json_schema_extra={"x-limit": "below_length"}), WHOLE] = 0
    instruction: _Instruction | None = None
    chat_template_kwargs: Instruction | None = None
    media_io_kwargs: EmptyObject | None = None

    def param_names(self) -> Mapping[str | None, str]:
        return {**self.params, **({"instruction": "chat_template_kwargs"} if self.instruction is None else {})}

    @property
    def score_options(self) -> dict[str, Any]:
        """Arguments of `AsyncLLM.score`."""
        kwargs = self.chat_template_kwargs
        return {
            "instruction": self.instruction or (kwargs.instruction if kwargs else None),
            "max_tokens_per_query": self.max_tokens_per_query,
            "max_tokens_per_doc": self.max_tokens_per_doc,
        }


class ScoreRequest(PairRequest):
    """One text against one or many, or as many against as many."""

    truncated: bool = Field(False, description="Say of each pair whether it was cut.")

    @classmethod
    def pair(cls) -> tuple[str, str]:
        """The names of its two fields."""
        return cls.params["query"], cls.params["document"]

    def sides(self) -> tuple[list[str], list[str]]:
        """The first and the second texts."""
        first, second = self.pair()
        return getattr(self, first), getattr(self, second)


class ScoreTexts(ScoreRequest):
    """`text_1` against `text_2`."""

    params = {"query": "text_1", "document": "text_2"}

    text_1: Texts
    text_2: Texts


class ScoreData(ScoreRequest):
    """`data_1` against `data_2`."""

    params = {"query": "data_1", "document": "data_2"}

    data_1: Texts
    data_2: Texts


class ScoreDocuments(ScoreRequest):
    """`queries` against `documents`."""

    params = {"query": "queries", "document": "documents"}

    queries: Texts
    documents: Texts


class ScoreItems(ScoreRequest):
    """`queries` against `items`."""

    params = {"query": "queries", "document": "items"}

    queries: Texts
    items: Texts


SCORE_FORMS: tuple[type[ScoreRequest], ...] = (ScoreTexts, ScoreDocuments, ScoreItems, ScoreData)


class RerankRequest(PairRequest):
    """Documents to put in the order of their scores for a query."""

    ignored_fields: ClassVar[frozenset[str]] = CommonRequest.ignored_fields | {
        "max_chunks_per_doc", "overlap_tokens", "rank_fields", "return_embeddings", "truncation",
    }  # fmt: skip
    params = {"document": "documents"}

    query: Text
    documents: Texts
    top_n: Annotated[int, Field(ge=0, description="So many results; 0 is all."), WHOLE] = 0
    return_documents: bool = True


@with_config(json_schema_extra=add_descriptions)
class ScoreResponseData(TypedDict):
    """The score of one pair."""

    index: int
    object: str
    score: float
    truncated: NotRequired[bool]


class ScoreResponse(ResponseHeader):
    """The scores, in the order of the pairs."""

    data: list[ScoreResponseData]
    usage: UsageInfo


class RankedText(TypedDict):
    """A document's text."""

    text: str
    multi_modal: None


@with_config(json_schema_extra=add_descriptions)
class RerankResult(TypedDict):
    """One document's place in the request, its text, its score."""

    index: int
    document: NotRequired[RankedText]
    relevance_score: float


class RerankUsage(TypedDict):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class RerankResponse(TypedDict):
    """The documents by falling score."""

    id: str
    model: str
    usage: RerankUsage
    results: list[RerankResult]
