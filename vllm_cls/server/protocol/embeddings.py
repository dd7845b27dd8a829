"""/v1/embeddings, as OpenAI has it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from ...params import PoolingParams
from .common import WHOLE, ResponseHeader, UsageInfo
from .prompts import ChatRequest, CompletionRequest, EncodingFields, PromptRequest


class EmbeddingRequest(EncodingFields, PromptRequest):
    """What is embedded, and how much of its embedding is wanted."""

    dimensions: (
        Annotated[int, Field(ge=1, description="So many numbers, the first ones, at unit length again."), WHOLE] | None
    ) = None

    def pooling_params(self) -> PoolingParams:
        """Those of all its prompts."""
        return PoolingParams(self.use_activation, head_name=self.head_name, dimensions=self.dimensions)


class EmbeddingInput(EmbeddingRequest, CompletionRequest):
    """Texts, pairs of texts, or token ids, to embed each."""


class EmbeddingChat(ChatRequest, EmbeddingRequest):
    """A conversation to embed."""


class EmbeddingData(TypedDict):
    """The embedding of one prompt: numbers, or base64 of their bytes."""

    index: int
    object: str
    embedding: list[float] | str


class EmbeddingResponse(ResponseHeader):
    """The embeddings, in the order of the prompts."""

    data: list[EmbeddingData]
    usage: UsageInfo
