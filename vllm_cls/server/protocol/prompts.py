"""The prompts of a request: `input`, or `messages`."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from typing_extensions import NotRequired, TypedDict

from ..errors import RequestError
from .common import BaseRequest, CommonRequest, TokenId, marked
from .encoding import EmbedDtype, Endianness
from .parts import read_content

NO_PROMPT = "You must pass at least one prompt."
EMPTY = "The decoder prompt cannot be empty."
_FORMS = 'a text, token ids, {"text": …, "text_pair": …}, or a list of texts, of such pairs or of lists of token ids'

_Text = Annotated[str, Field(min_length=1)]
_TokenIds = Annotated[list[TokenId], Field(min_length=1)]


class TextPair(BaseModel):
    """Two texts that are read as one prompt; or one text."""

    model_config = ConfigDict(extra="forbid")

    text: _Text
    text_pair: str | None = None


_Inputs = (
    _Text
    | TextPair
    | Annotated[list[_Text | TextPair], Field(min_length=1, json_schema_extra={"x-limit": "inputs"})]
    | _TokenIds
    | Annotated[list[_TokenIds], Field(min_length=1, json_schema_extra={"x-limit": "inputs"})]
)


TextsInput = _Text | Annotated[list[_Text], Field(min_length=1, json_schema_extra={"x-limit": "inputs"})]
"""Texts alone, one or several."""


def read_input(value: Any) -> list[Any]:
    """The prompts that `input` means, as `AsyncLLM` takes them.

    Raises:
        RequestError: it has none of the forms.
    """
    if isinstance(value, list):
        if not value:
            raise RequestError(NO_PROMPT, "input")
        if isinstance(value[0], int | float):
            return [_token_ids(value)]
        if isinstance(value[0], list):
            return [_token_ids(each) for each in value]
        return [_text(each) for each in value]
    return [_text(value)]


def _text(value: Any) -> Any:
    pair = None
    if isinstance(value, dict) and "text" in value and value.keys() <= {"text", "text_pair"}:
        value, pair = value["text"], value.get("text_pair")
    if not isinstance(value, str) or not isinstance(pair, str | None):
        raise RequestError(f"input must be {_FORMS}.", "input")
    if not value:
        raise RequestError(EMPTY, "input")
    return value if pair is None else (value, pair)


def _token_ids(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise RequestError(f"input must be {_FORMS}.", "input")
    if not value:
        raise RequestError(EMPTY, "input")
    ids = [int(each) if isinstance(each, float) and each.is_integer() else each for each in value]
    if not all(type(each) is int for each in ids):
        raise RequestError("input: token ids are whole numbers.", "input")
    return ids


Input = Annotated[list[Any], PlainValidator(read_input, json_schema_input_type=_Inputs)]


class TextPart(TypedDict):
    """A part that is a text."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # pydantic's way to say it of a TypedDict

    type: Literal["text"]
    text: str


class Message(TypedDict):
    """One message of a conversation; whatever else it holds is the chat template's to read."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # pydantic's way to say it of a TypedDict

    role: Annotated[str, Field(min_length=1)]
    content: NotRequired[str | list[Annotated[dict[str, Any], marked("content_part")]] | None]


def read_messages(value: Any) -> list[dict[str, Any]]:
    """A conversation; what it holds beside texts are `MediaPart`s.

    Raises:
        RequestError: it is none, or holds what is neither text, image nor video.
    """
    if not isinstance(value, list) or not value:
        raise RequestError("messages must be a list of at least one message.", "messages")
    return [_message(each, f"messages[{index}]") for index, each in enumerate(value)]


def _message(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str) or not value["role"]:
        raise RequestError('a message must be an object with a "role", such as "user".', "messages")
    return {**value, "content": read_content(value.get("content"), "messages", place)}


Messages = Annotated[
    list[Any],
    PlainValidator(read_messages, json_schema_input_type=Annotated[list[Message], Field(min_length=1)]),
]


class EncodingFields(CommonRequest):
    """How numbers are written; null is the first of each."""

    encoding_format: Literal["float", "base64", "bytes", "bytes_only"] | None = None
    embed_dtype: EmbedDtype | None = None
    endianness: Endianness | None = None


class PromptRequest(CommonRequest):
    """A request with prompts, in one form or the other."""

    @abc.abstractmethod
    def prompts(self) -> list[Any]:
        """What `AsyncLLM` takes."""


class CompletionRequest(PromptRequest):
    """Texts, pairs of texts, or token ids."""

    params = {None: "input"}

    input: Input

    def prompts(self) -> list[Any]:
        return self.input


class ChatFields(BaseRequest):
    """One conversation, and what its chat template is told."""

    schema_extra: ClassVar[Mapping[str, Any]] = {
        "not": {
            "properties": {"add_generation_prompt": {"const": True}, "continue_final_message": {"const": True}},
            "required": ["add_generation_prompt", "continue_final_message"],
        }
    }

    params = {None: "messages"}

    messages: Messages
    add_generation_prompt: bool | None = Field(
        None, description="null: false, unless the checkpoint's own prompt is its chat template."
    )
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template: Annotated[str, marked("chat_template")] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], marked("chat_template_kwargs")] | None = None
    media_io_kwargs: Annotated[dict[str, Any], marked("mm_kwargs")] | None = None
    mm_processor_kwargs: Annotated[dict[str, Any], marked("mm_kwargs")] | None = None

    @property
    def has_template(self) -> bool:
        """Whether the client wants a say in the template."""
        return self.chat_template is not None or bool(self.chat_template_kwargs)

    @property
    def template_options(self) -> dict[str, Any]:
        """What the chat template is told.

        Raises:
            RequestError: the options contradict each other.
        """
        if self.add_generation_prompt and self.continue_final_message:
            raise RequestError(
                "Cannot set both `continue_final_message` and `add_generation_prompt` to true.",
                "continue_final_message",
            )
        options: dict[str, Any] = {}
        if self.add_generation_prompt is not None or self.continue_final_message:
            options["add_generation_prompt"] = bool(self.add_generation_prompt)
        if self.continue_final_message:
            options["continue_final_message"] = True
        return options

    @property
    def conversation(self) -> dict[str, Any]:
        """The prompt, as `LLM` takes it."""
        return {"messages": self.messages, "chat_template_kwargs": self.template_options}


class ChatRequest(ChatFields, PromptRequest):
    """One conversation, to be run."""

    def prompts(self) -> list[Any]:
        return [self.conversation]
