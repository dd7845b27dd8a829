"""/v1/moderations, OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator
from typing_extensions import TypedDict

from ..errors import RequestError
from .common import CommonRequest, marked
from .parts import MediaPart, read_content
from .prompts import EMPTY, NO_PROMPT

CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
"""OpenAI's, which an answer has in any case."""

_Given = Annotated[str, Field(min_length=1)]
_Inputs = (
    _Given
    | Annotated[list[_Given], Field(min_length=1, json_schema_extra={"x-limit": "inputs"})]
    | Annotated[list[Annotated[dict[str, Any], marked("moderation_part")]], Field(min_length=1)]
)


def read_input(value: Any) -> list[Any]:
    """The inputs, each with a result of its own: texts, or one list of parts.

    Raises:
        RequestError: it has none of the forms.
    """
    given = values = value if isinstance(value, list) else [value]
    if not values:
        raise RequestError(NO_PROMPT, "input")
    if all(isinstance(each, dict) for each in values):
        values = [read_content(values, "input", "input")]
        others = [each.kind for each in values[0] if isinstance(each, MediaPart) and each.kind != "image_url"]
        if others:
            raise RequestError(
                f"input: parts are of type text and image_url; there is one of type {others[0]!r}.", "input"
            )
    elif not all(isinstance(each, str) for each in values):
        raise RequestError(
            "input must be a text, a list of texts, or a list of parts of type text and image_url.", "input"
        )
    if not all(each["text"] if isinstance(each, dict) and "text" in each else each for each in given):
        raise RequestError(EMPTY, "input")
    return values


class ModerationRequest(CommonRequest):
    """Texts, or a text with images, to be judged."""

    params = {None: "input"}

    input: Annotated[list[Any], PlainValidator(read_input, json_schema_input_type=_Inputs)]
    threshold: Annotated[
        float | None, Field(ge=0, le=1, description="From which probability it is flagged; null: the server's, or 0.5.")
    ] = None
    categories: Annotated[list[str], marked("moderation_categories")] | None = Field(
        None, description="Those to ask for, of a guard model that asks for each by itself; null: all."
    )


class ModerationResult(TypedDict):
    """What is said of one input; beside OpenAI's categories there are those of the model."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text", "image"]]]


class ModerationResponse(TypedDict):
    """The results, in the order of the inputs."""

    id: str
    model: str
    results: list[ModerationResult]


def applied(given: str | Sequence[Any]) -> list[Literal["text", "image"]]:
    """What an input holds."""
    if isinstance(given, str):
        return ["text"]
    has_image = any(isinstance(each, MediaPart) for each in given)
    has_text = any(isinstance(each, Mapping) and each["text"] for each in given)
    kinds: list[tuple[Literal["text", "image"], bool]] = [("text", has_text), ("image", has_image)]
    return [kind for kind, is_there in kinds if is_there]
