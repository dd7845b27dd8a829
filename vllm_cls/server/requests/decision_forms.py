"""OpenAI's decisions as System One's, and the answers back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

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

Answer = PredicateAnswer | ChoiceAnswer | ScoreAnswer


def system_one(body: DecisionsRequest) -> dict[str, Any]:
    """The request as `LLM.decide` takes it; the questions are named by their places.

    Raises:
        RequestError: there is an image, an output without its call, or a choice given twice.
    """
    return {
        "state": _state(body.input),
        "questions": {str(place): _question(each, place) for place, each in enumerate(body.questions)},
    }


def _state(given: str | list[Any]) -> Any:
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
        items.append(_item(item))
    alone = len(items) == 1 and isinstance(given[0], UserMessage)
    return items[0]["content"] if alone else items


def _item(item: Any) -> dict[str, Any]:
    if isinstance(item, UserMessage | InstructionMessage | AssistantMessage):
        return {"role": item.role, "content": _content(item.content, "input")}
    named = {"type": item.type, "call_id": item.call_id}
    if isinstance(item, FunctionCall):
        return {**named, "name": item.name, "arguments": _parsed(item.arguments)}
    if isinstance(item, CustomToolCall):
        return {**named, "name": item.name, "input": item.input}
    return {**named, "output": _content(item.output, "input")}


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):  # a model may have written anything
        return arguments


def _content(content: str | Sequence[AnyPart | OutputText | Refusal], param: str) -> Any:
    """Texts as one text, and what is with JSON as a list.

    Raises:
        RequestError: there is an image.
    """
    if isinstance(content, str):
        return content
    if any(isinstance(each, InputImage) for each in content):
        raise RequestError(f"{param}: decisions read texts here; leave images out.", param)
    values: list[Any] = [each.data if isinstance(each, InputJson) else _text(each) for each in content]
    if all(isinstance(each, str) for each in values):
        return "\n".join(values)
    return values[0] if len(values) == 1 else values


def _text(part: Any) -> str:
    return part.refusal if isinstance(part, Refusal) else str(part.text)


def _question(question: PredicateQuestion | ChoiceQuestion | ScoreQuestion, place: int) -> dict[str, Any]:
    instructions = _content(question.instructions, "questions")
    if isinstance(question, PredicateQuestion):
        return {"type": "noul", "instructions": instructions}
    if isinstance(question, ChoiceQuestion):
        keys = _keys(question, place)
        criteria = {key: each.description for key, each in zip(keys, question.choices, strict=True)}
        return {"type": "choice", "instructions": instructions, "criteria": criteria}
    levels = [f"{each.label}: {each.description}" if each.description else each.label for each in question.levels]
    return {"type": "score", "instructions": instructions, "criteria": levels}


def _keys(question: ChoiceQuestion, place: int) -> list[str]:
    """What a prompt calls the values: a text that a boolean looks like stands in quotes.

    Raises:
        RequestError: a value is there twice.
    """
    values = [each.value for each in question.choices]
    if len({(type(each), each) for each in values}) < len(values):
        raise RequestError(f"questions: question {place} has a choice twice; each must be unique.", "questions")
    booleans = {json.dumps(each) for each in values if isinstance(each, bool)}
    return [json.dumps(each) if isinstance(each, bool) or each in booleans else each for each in values]


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
