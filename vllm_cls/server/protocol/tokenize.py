"""/tokenize and /detokenize."""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import TypedDict

from .common import BaseRequest, TokenId
from .prompts import ChatFields


class TokenizePrompt(BaseRequest):
    """A text."""

    params = {None: "prompt"}

    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False

    @property
    def conversation(self) -> Any:
        """The prompt, as `LLM` takes it."""
        return self.prompt


class TokenizeChat(ChatFields):
    """A conversation."""

    ignored_fields: ClassVar[frozenset[str]] = frozenset({"tools"})

    add_generation_prompt: bool | None = True
    return_token_strs: bool = False


class TokenizeResponse(TypedDict):
    """The tokens that the model would see."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(BaseRequest):
    """Token ids."""

    params = {None: "tokens"}

    tokens: list[TokenId]


class DetokenizeResponse(TypedDict):
    """Their text."""

    prompt: str
