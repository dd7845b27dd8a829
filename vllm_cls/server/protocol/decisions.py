"""/v1/systemone (as `transformers serve` has it) and /v1/decisions (OpenAI's)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StrictBool, StrictStr, Tag
from typing_extensions import TypedDict

from .common import BaseRequest


class SystemOneRequest(BaseRequest):
    """Typed questions about a state."""

    params: ClassVar[Mapping[str | None, str]] = {None: "questions"}

    state: str | dict[str, Any] | list[Any]
    questions: Annotated[dict[str, dict[str, Any]], Field(min_length=1, json_schema_extra={"x-limit": "questions"})]
    assets: Annotated[
        dict[str, dict[str, Any]],
        Field(
            max_length=4,
            description='Images by the names that stand for them in texts: `{"data_base64": …}`; for models that read images.',
            json_schema_extra={"x-limit": "assets"},
        ),
    ] = Field(default_factory=dict)


class SystemOneUsage(TypedDict):
    """Tokens of all prompts; none is generated."""

    input_tokens: int
    output_tokens: int


class SystemOneResponse(TypedDict):
    """The answers by the names of the questions, in the System One form."""

    model: str
    answers: dict[str, dict[str, Any]]
    usage: SystemOneUsage


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CacheBreakpoint(_Part):
    """Accepted, without effect: what prompts have in common is found."""

    mode: Literal["explicit"]


class InputText(_Part):
    """A text."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class InputImage(_Part):
    """An image, where the model reads images: a URL of `data:`, or as for conversations."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["low", "high", "auto", "original"] | None = None
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class InputJson(_Part):
    """An object or an array of objects, written as JSON."""

    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]


class OutputText(_Part):
    """A text of the assistant."""

    type: Literal["output_text"]
    text: str


class Refusal(_Part):
    """What the assistant refused."""

    type: Literal["refusal"]
    refusal: str


AnyPart = Annotated[InputText | InputImage | InputJson, Field(discriminator="type")]
Content = str | list[AnyPart]


class UserMessage(_Part):
    """What the user said."""

    type: Literal["message"] = "message"
    role: Literal["user"]
    content: Content


class InstructionMessage(_Part):
    """What the developer or the system said."""

    type: Literal["message"] = "message"
    role: Literal["developer", "system"]
    content: str | list[InputText]


class AssistantMessage(_Part):
    """What the assistant said."""

    type: Literal["message"] = "message"
    role: Literal["assistant"]
    content: str | list[Annotated[OutputText | Refusal, Field(discriminator="type")]]
    phase: Literal["commentary", "final_answer"] | None = None


class _Call(_Part):
    call_id: str
    id: str | None = None


class FunctionCall(_Call):
    """A call of a function."""

    type: Literal["function_call"]
    name: str
    arguments: str
    namespace: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class CustomToolCall(_Call):
    """A call of a tool of another kind."""

    type: Literal["custom_tool_call"]
    name: str
    input: str
    namespace: str | None = None


class FunctionCallOutput(_Call):
    """What a function gave."""

    type: Literal["function_call_output"]
    output: Content
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class CustomToolCallOutput(_Call):
    """What a tool gave."""

    type: Literal["custom_tool_call_output"]
    output: Content


def _kind(value: Any) -> str | None:
    """By what an item is told apart: its type, and of a message the role."""
    get = value.get if isinstance(value, dict) else lambda name, default=None: getattr(value, name, default)
    kind = get("type", None) or "message"
    return str(get("role", None) if kind == "message" else kind)


InputItem = Annotated[
    Annotated[UserMessage, Tag("user")]
    | Annotated[InstructionMessage, Tag("developer")]
    | Annotated[InstructionMessage, Tag("system")]
    | Annotated[AssistantMessage, Tag("assistant")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[CustomToolCall, Tag("custom_tool_call")]
    | Annotated[CustomToolCallOutput, Tag("custom_tool_call_output")],
    Discriminator(_kind),
]
ChoiceValue = StrictStr | StrictBool
"""A text and a boolean that look alike are two values."""


class _Question(_Part):
    name: str | None = None
    instructions: Content


class PredicateQuestion(_Question):
    """How likely it is that a statement is true."""

    type: Literal["predicate"]


class Option(_Part):
    """One value to choose."""

    value: ChoiceValue
    description: str | None = None


class ChoiceQuestion(_Question):
    """Which of some values fits."""

    type: Literal["choice"]
    choices: Annotated[list[Option], Field(min_length=2, max_length=255)]


class Level(_Part):
    """One level of a score."""

    label: str
    description: str | None = None


class ScoreQuestion(_Question):
    """Which of some levels fits, the lowest first."""

    type: Literal["score"]
    levels: Annotated[list[Level], Field(min_length=2, max_length=255)]


AnyQuestion = Annotated[PredicateQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]


class CacheOptions(_Part):
    """Accepted, without effect."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


class DecisionsRequest(BaseRequest):
    """OpenAI's request: questions about a text or a conversation."""

    params: ClassVar[Mapping[str | None, str]] = {None: "questions"}

    input: str | Annotated[list[InputItem], Field(min_length=1)]
    questions: Annotated[list[AnyQuestion], Field(min_length=1, max_length=400)]
    prompt_cache_key: Annotated[
        str | None, Field(max_length=1024, description="Requests of different keys share no keys and values.")
    ] = None
    prompt_cache_options: CacheOptions | None = None
    safety_identifier: Annotated[str | None, Field(max_length=512, description="Accepted, without effect.")] = None


class PredicateAnswer(TypedDict):
    """The answer to a predicate."""

    type: Literal["predicate"]
    name: str | None
    probability: float


class OptionProbability(TypedDict):
    """How likely a value is."""

    value: str | bool
    probability: float


class ChoiceAnswer(TypedDict):
    """The answer to a choice."""

    type: Literal["choice"]
    name: str | None
    choice: str | bool
    confidence: float
    probabilities: list[OptionProbability]


class LevelProbability(TypedDict):
    """How likely a level is; the lowest has the value 0."""

    label: str
    value: int
    probability: float


class ScoreAnswer(TypedDict):
    """The answer to a score: the mean of the levels' values."""

    type: Literal["score"]
    name: str | None
    score: float
    confidence: float
    probabilities: list[LevelProbability]


class InputTokensDetails(TypedDict):
    """Of the input's tokens, those whose keys and values were at hand."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(TypedDict):
    """There are none."""

    reasoning_tokens: int


class DecisionsUsage(TypedDict):
    """Tokens of all prompts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class DecisionsResponse(TypedDict):
    """The answers, in the order of the questions."""

    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer]
    model: str
    usage: DecisionsUsage
