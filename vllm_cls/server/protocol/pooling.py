"""/pooling."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator, with_config
from typing_extensions import NotRequired, TypedDict

from ...result_fields import add_descriptions
from ..errors import RequestError
from .common import ResponseHeader, UsageInfo, marked
from .prompts import ChatRequest, CompletionRequest, EncodingFields, PromptRequest


def _read_dimensions(value: Any) -> None:
    if value is not None:
        raise RequestError("dimensions is currently not supported; leave it out.", "dimensions")


class PoolingRequest(EncodingFields, PromptRequest):
    """What is pooled."""

    task: Annotated[str, marked("task")] | None = None
    offsets: bool = Field(False, description="Where each token of a token classifier stands in the text; not in bytes.")
    dimensions: Annotated[None, PlainValidator(_read_dimensions, json_schema_input_type=None)] = None


class PoolingInput(PoolingRequest, CompletionRequest):
    """Texts, pairs of texts, or token ids, to pool each."""


class PoolingChat(ChatRequest, PoolingRequest):
    """A conversation to pool."""


@with_config(json_schema_extra=add_descriptions)
class PoolingData(TypedDict):
    """The answer to one prompt: numbers, rows of numbers, or base64 of their bytes.

    `offsets` are in characters: a start and an end for each row, or null for a token that the tokenizer added; null as a whole
    where they are not known.
    """

    index: int
    object: str
    data: list[float] | list[list[float]] | str
    offsets: NotRequired[list[tuple[int, int] | None] | None]


class PoolingResponse(ResponseHeader):
    """The answers, in the order of the prompts."""

    data: list[PoolingData]
    usage: UsageInfo
