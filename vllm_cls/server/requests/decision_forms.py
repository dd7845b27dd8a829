"""OpenAI's decisions as System One's, and the answers back; the images of both."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from ..protocol.decisions import (
    AnyPart,
    AssistantMessage,
    ChoiceAnswer,
    ChoiceQuestion,
    CustomToolCall,
    DecisionsRequest,
    FunctionCall,
    InputImage,
    InputJson,
    InstructionMessage,
    LevelProbability,
    OptionProbability,
    OutputText,
    PredicateAnswer,
    PredicateQuestion,
    Refusal,
    ScoreAnswer,
    ScoreQuestion,
    UserMessage,
)
from ..protocol.parts import MediaPart
from ..served_model import ServedModel
from .media import items_of

if TYPE_CHECKING:
    from starlette.requests import Request

Images = dict[str, MediaPart]
"""By the names that stand for them in texts."""
Answer = PredicateAnswer | ChoiceAnswer | ScoreAnswer


async def with_assets(model: ServedModel, request: Request, asked: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """A request as `LLM.decide` takes it, its images read.

    Raises:
        RequestError: one cannot be read, or is not allowed; or the model reads none.
    """
    assets: dict[str, Any] = {}
    for param in dict.fromkeys(each.place for each in images.values()):
        named = {name: part for name, part in images.items() if part.place == param}
        items: Mapping[MediaPart, Any] = await items_of(model, request, list(named.values()), param=param)
        assets |= {name: items[part][0].pixels for name, part in named.items()}
    return {**asked, "assets": assets} if assets else dict(asked)


def images_of(assets: Mapping[str, Mapping[str, Any]]) -> Images:
    """The images of a System One request.

    Raises:
        RequestError: one has no data.
    """
    for name, each in assets.items():
        if not name or not isinstance(each.get("data_base64"), str):
            raise RequestError(f"assets, {name[:100]!r}: an image is given as data_base64, under a name.", "assets")
    data = {name: str(each["data_base64"]) for name, each in assets.items()}
    return {
        name: MediaPart("image_url", each if each.startswith("data:") else {"base64": each}, "assets")
        for name, each in data.items()
    }


def system_one(body: DecisionsRequest) -> tuple[dict[str, Any], Images]:
    """The request in System One's form, its questions named by their places, and its images.

    Raises:
        RequestError: there is an output without its call, or a choice given twice.
    """
    images = _Images(secrets.token_hex(8))
    asked = {
        "state": _state(body.input, images),
        "questions": {str(place): _question(each, place, images) for place, each in enumerate(body.questions)},
    }
    return asked, images


class _Images(Images):
    """Images by names that no text has.

    Args:
        nonce: in all of their names.
    """

    def __init__(self, nonce: str) -> None:
        super().__init__()
        self._nonce = nonce

    def named(self, image: InputImage, param: str) -> str:
        """The name of one more."""
        name = f"image-{self._nonce}-{len(self)}-"
        self[name] = MediaPart(image.type, image.image_url, param)
        return name


def _state(given: str | list[Any], images: _Images) -> Any:
    """A text as it is, and that of a single message of the user; else messages, calls and outputs as objects."""
    if isinstance(given, str):
        return given
    calls: set[str] = set()
    items: list[dict[str, Any]] = []
    for item in given:
        if isinstance(item, FunctionCall | CustomToolCall):
            calls.add(item.call_id)
        elif not isinstance(item, UserMessage | InstructionMessage | AssistantMessage) and item.call_id not in calls:
            raise RequestError(
                f"input: an output has the call_id {item.call_id[:100]!r}, and no call before it has.", "input"
            )
        items.append(_item(item, images))
    alone = len(items) == 1 and isinstance(given[0], UserMessage)
    return items[0]["content"] if alone else items


def _item(item: Any, images: _Images) -> dict[str, Any]:
    if isinstance(item, UserMessage | InstructionMessage | AssistantMessage):
        return {"role": item.role, "content": _content(item.content, "input", images)}
    named = {"type": item.type, "call_id": item.call_id}
    if isinstance(item, FunctionCall):
        return {**named, "name": item.name, "arguments": _parsed(item.arguments)}
    if isinstance(item, CustomToolCall):
        return {**named, "name": item.name, "input": item.input}
    return {**named, "output": _content(item.output, "input", images)}


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):  # a model may have written anything
        return arguments


def _content(content: str | Sequence[AnyPart | OutputText | Refusal], param: str, images: _Images) -> Any:
    """Texts, and the names of images, as one text; what is with JSON as a list."""
    if isinstance(content, str):
        return content
    values: list[Any] = [each.data if isinstance(each, InputJson) else _text(each, param, images) for each in content]
    if all(isinstance(each, str) for each in values):
        return "\n".join(values)
    return values[0] if len(values) == 1 else values


def _text(part: Any, param: str, images: _Images) -> str:
    if isinstance(part, InputImage):
        return images.named(part, param)
    return part.refusal if isinstance(part, Refusal) else str(part.text)


def _question(
    question: PredicateQuestion | ChoiceQuestion | ScoreQuestion, place: int, images: _Images
) -> dict[str, Any]:
    instructions = _content(question.instructions, "questions", images)
    if isinstance(question, PredicateQuestion):
        return {"type": "noul", "instructions": instructions}
    if isinstance(question, ChoiceQuestion):
        keys = _keys(question, place)
        criteria = {key: each.description for key, each in zip(keys, question.choices, strict=True)}
        return {"type": "choice", "instructions": instructions, "criteria": criteria}
    levels = [f"{each.label}: {each.description}" if each.description else each.label for each in question.levels]
    return {"type": "score", "instructions": instructions, "criteria": levels}


def _keys(question: ChoiceQuestion, place: int) -> list[str]:
    """What a prompt calls the values: a text that a boolean looks like stands in quotes, all where that is another's.

    Raises:
        RequestError: a value is there twice.
    """
    values = [each.value for each in question.choices]
    if len({(type(each), each) for each in values}) < len(values):
        raise RequestError(f"questions: question {place} has a choice twice; each must be unique.", "questions")
    booleans = {json.dumps(each) for each in values if isinstance(each, bool)}
    keys = [json.dumps(each) if isinstance(each, bool) or each in booleans else each for each in values]
    return keys if len(set(keys)) == len(keys) else [json.dumps(each, ensure_ascii=False) for each in values]


def answers(body: DecisionsRequest, found: Mapping[str, Mapping[str, Any]]) -> list[Answer]:
    """The answers of `system_one`'s questions, in their order."""
    return [_answer(each, place, found[str(place)]) for place, each in enumerate(body.questions)]


def _answer(question: Any, place: int, found: Mapping[str, Any]) -> Answer:
    if isinstance(question, PredicateQuestion):
        return PredicateAnswer(type="predicate", name=question.name, probability=found["noul"])
    probabilities = list(found["probabilities"].values())
    if isinstance(question, ChoiceQuestion):
        keys, values = _keys(question, place), [each.value for each in question.choices]
        return ChoiceAnswer(
            type="choice",
            name=question.name,
            choice=values[keys.index(found["choice"])],
            confidence=found["confidence"],
            probabilities=[
                OptionProbability(value=value, probability=each)
                for value, each in zip(values, probabilities, strict=True)
            ],
        )
    return ScoreAnswer(
        type="score",
        name=question.name,
        score=found["score"],
        confidence=found["confidence"],
        probabilities=[
            LevelProbability(label=level.label, value=value, probability=each)
            for value, (level, each) in enumerate(zip(question.levels, probabilities, strict=True))
        ],
    )
