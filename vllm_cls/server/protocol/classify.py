"""/classify."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict

from .common import CommonRequest, Usage


class ClassifyRequest(CommonRequest):
    """Texts, or token ids."""

    input: Any

    @property
    def prompts(self) -> list[Any]:
        """What `AsyncLLM` takes."""
        single = isinstance(self.input, str) or (isinstance(self.input, list) and isinstance(self.input[0], int))
        return [self.input] if single else self.input


class Classification(TypedDict):
    """One prompt's answer."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class ClassifyResponse(TypedDict):
    """The answers, in the order of the prompts."""

    id: str
    object: str
    created: int
    model: str
    data: list[Classification]
    usage: Usage
