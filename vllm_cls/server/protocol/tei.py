"""/predict, /info, and /rerank with `texts`: the forms of Text Embeddings Inference, whose clients work unchanged."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import Field, PlainValidator
from typing_extensions import NotRequired, TypedDict

from ..errors import RequestError
from .classify import ClassifyInput
from .common import BaseRequest, CommonRequest
from .prompts import EMPTY, NO_PROMPT
from .score import RerankRequest

Plain = TypeVar("Plain", bound=CommonRequest)

_Text = Annotated[str, Field(min_length=1)]
_Sequence = Annotated[list[_Text], Field(min_length=1, max_length=2)]
_Inputs = _Text | _Sequence | Annotated[list[_Sequence], Field(min_length=1, json_schema_extra={"x-limit": "inputs"})]
_FORMS = "a text, a pair of texts as a list of two, or a list of [text] and [text, text]"


class Sequences(NamedTuple):
    """The prompts of a request, texts and pairs; one that is no list of lists is `single`, and so is its answer."""

    prompts: list[str | tuple[str, ...]]
    single: bool


def _read_inputs(value: Any) -> Sequences:
    if isinstance(value, list) and not value:
        raise RequestError(NO_PROMPT, "inputs")
    single = not isinstance(value, list) or not isinstance(value[0], list)
    return Sequences([_read_sequence(each) for each in ([value] if single else value)], single)


def _read_sequence(value: Any) -> str | tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    if not 1 <= len(texts) <= 2 or not all(isinstance(each, str) for each in texts):
        raise RequestError(f"inputs must be {_FORMS}.", "inputs")
    if not texts[0]:
        raise RequestError(EMPTY, "inputs")
    return tuple(texts) if len(texts) == 2 else texts[0]


class _Options(BaseRequest):
    """What both routes take."""

    ignored_fields: ClassVar[frozenset[str]] = frozenset({"parameters"})

    truncate: bool | None = Field(None, description="Cut what is too long; else that is an error.")
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"
    raw_scores: bool = Field(False, description="Logits in place of what the model's activation gives.")

    def _as(self, form: type[Plain], **fields: Any) -> Plain:
        """The same request in our own form; its values were checked."""
        cut: dict[str, Any] = {"truncate_prompt_tokens": -1, "truncation_side": self.truncation_direction.lower()}
        return form.model_construct(
            model=self.model,
            use_activation=False if self.raw_scores else None,
            **(cut if self.truncate else {}),
            **fields,
        )


class PredictRequest(_Options):
    """Texts and pairs to classify."""

    params = {None: "inputs"}

    inputs: Annotated[Sequences, PlainValidator(_read_inputs, json_schema_input_type=_Inputs)]

    def plain(self) -> ClassifyInput:
        """As /classify takes it."""
        return self._as(ClassifyInput, input=self.inputs.prompts)


class RerankTexts(_Options):
    """Texts to put in the order of their scores for a query."""

    params = {"document": "texts"}

    query: str
    texts: Annotated[list[str], Field(min_length=1, json_schema_extra={"x-limit": "documents"})]
    return_text: bool = False

    def plain(self) -> RerankRequest:
        """As /rerank takes documents."""
        return self._as(RerankRequest, query=self.query, documents=self.texts)


class RankedIndex(TypedDict):
    """One text's place in the request, and its score."""

    index: int
    score: float
    text: NotRequired[str]


class ClassifierLabels(TypedDict):
    """The labels of a model, both ways."""

    id2label: dict[str, str]
    label2id: dict[str, int]


class Info(TypedDict):
    """What the server runs, under the names of Text Embeddings Inference.

    `model_type` has one key: `classifier`, `reranker` (one label) or `embedding`, whose value names the `pooling`. Lengths and
    batches are in tokens.
    """

    model_id: str
    model_sha: None
    model_dtype: str
    model_type: dict[str, ClassifierLabels | dict[str, str]]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: None
    docker_label: None
