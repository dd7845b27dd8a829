"""A row of an input, and the prompt that it holds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, PromptError, nearest
from .media_fields import items_in

if TYPE_CHECKING:
    from ..inputs.media_reader import MediaReader
    from ..llm import LLM
    from .remote import RemoteMedia, RemoteModel

TEXT_LIMIT = 64 * 2**20
"""Characters of the longest text that is shown to a model: none reads more, and a damaged row must not fill the memory."""

_MARKS = ",;\t|"  # between columns


@dataclass(slots=True)
class InputRow:
    """One row of an input.

    Args:
        fields: its columns; of a row that could not be parsed, what could be.
        number: its line or its place in the file, from 1.
        offset: bytes of the file that were used up to its end.
        error: why it cannot be classified, or None.
        source: the name of its file.
        unit: "line" or "row", what `number` counts.
        done: the share of all inputs read up to its end, or None where their size is unknown.
    """

    fields: dict[str, Any]
    number: int
    offset: int = 0
    error: str | None = None
    source: str = ""
    unit: str = "row"
    done: float | None = None

    @property
    def folder(self) -> str:
        """The folder of its file, in which its paths begin."""
        return os.path.dirname(self.source)

    @property
    def place(self) -> str:
        return f"{self.source}, {self.unit} {self.number}"


@dataclass(frozen=True)
class PromptFields:
    """Which columns a prompt is made of.

    Args:
        text: the column of the text; None where a stored template takes everything from other columns.
        pair: the column of a second text, or None.
        messages: the column of chat messages, which replaces the text, or None.
        image: the column of images, or None. With one of images or videos, a row may do without a text, or without these.
        video: the column of videos, or None.
        places: by modality, the text that stands for one in a prompt; written before a text that has none of them.
    """

    text: str | None = "text"
    pair: str | None = None
    messages: str | None = None
    image: str | None = None
    video: str | None = None
    places: Mapping[str, str] = field(default_factory=dict)

    def check(self, llm: LLM | RemoteModel) -> None:
        """Raise `ConfigError` if the model cannot run such prompts at all."""

    @property
    def media(self) -> dict[str, str]:
        """The columns of images and videos, by modality."""
        return {name: column for name, column in (("image", self.image), ("video", self.video)) if column is not None}

    def reading(self, media: MediaReader | RemoteMedia | None, templated: bool) -> PromptFields:
        """The same columns for a model, with the places that it has for images and videos.

        Args:
            media: of the model.
            templated: whether a template that the model stores writes these places.

        Raises:
            ConfigError: it does not read what the columns hold, or columns contradict each other.
        """
        if not self.media:
            return self
        if self.messages is not None or self.pair is not None:
            raise ConfigError(
                "image_field and video_field go with one text, and messages hold their own; leave one out."
            )
        for modality, column in self.media.items():
            known = () if media is None else media.modalities
            if media is None or modality not in known:
                reads = " and ".join(f"{each}s" for each in ("text", *known))
                raise ConfigError(f"{modality}_field={column!r}: this model reads {reads}; leave it out.")
        return self if templated or media is None else replace(self, places={each: media.place(each) for each in known})

    def names(self) -> list[str]:
        """The columns that every row must have."""
        if self.messages is not None:
            return [self.messages]
        return [
            name for name in (None if self.media else self.text, self.pair, *self.media.values()) if name is not None
        ]

    def prompt(self, fields: Mapping[str, Any], folder: str = "") -> dict[str, Any]:
        """The prompt of one row, as `LLM.classify` takes it.

        Args:
            folder: that paths of images and videos begin at.

        Raises:
            PromptError: a column is missing, empty or of a wrong type; the message names it.
        """
        if self.messages is not None:
            return {"messages": _messages(self.messages, _value(fields, self.messages)), "fields": fields}
        prompt: dict[str, Any] = {"fields": fields}
        data = {name: items_in(column, _cell(fields, column), folder) for name, column in self.media.items()}
        if data:  # empty lists too: a text with a place for an image then misses one
            prompt["multi_modal_data"] = data
        if self.text is not None:
            bare = any(data.values()) and fields.get(self.text) in (None, "")
            text = "" if bare else _text(self.text, _value(fields, self.text))
            prompt["prompt"] = self._placed(text, data)
        if self.pair is not None:
            prompt["text_pair"] = _text(self.pair, _value(fields, self.pair))
        return prompt

    def _placed(self, text: str, data: Mapping[str, Sequence[Any]]) -> str:
        if any(place in text for place in self.places.values()):
            return text
        return "".join(self.places[name] * len(items) for name, items in data.items() if name in self.places) + text


def missing(name: str, known: Iterable[str]) -> str:
    """The message for a missing column `name`, with the columns that there are."""
    columns = list(known)
    shown = ", ".join(map(repr, columns[:10])) + (" …" if len(columns) > 10 else "")
    near = nearest(name, columns)
    hint = f"{near} If so, name it with --text-field or its like." if near else ""
    for column in columns:
        if any(name in map(str.strip, column.split(mark)) for mark in _MARKS if mark in column):
            hint = f" It is a part of {column!r}: the header's columns must all be separated by the same character."
    return f"no field {name!r}; there is {shown or 'none'}.{hint}"


def _cell(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        raise PromptError(missing(name, fields))
    return fields[name]


def _value(fields: Mapping[str, Any], name: str) -> Any:
    value = _cell(fields, name)
    if value is None:
        raise PromptError(f"the field {name!r} is null")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise PromptError(f"the field {name!r} is not a text but {json_type(value)}")
    if not value.strip():
        raise PromptError(f"the field {name!r} is empty")
    if len(value) > TEXT_LIMIT:
        raise PromptError(f"the field {name!r} is longer than {TEXT_LIMIT >> 20} Mi characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"half a surrogate pair, \\u{ord(value[error.start]):04x}"
        raise PromptError(f"the field {name!r} has {half}, at character {error.start + 1}") from error
    return value


def _messages(name: str, value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str):  # CSV holds them as JSON text
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise PromptError(f"the field {name!r} is not a JSON list of messages: {error}") from error
    if not isinstance(value, list) or not value:
        raise PromptError(f"the field {name!r} is not a list of messages but {json_type(value)}")
    for message in value:
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise PromptError(f"the field {name!r} has a message without 'role' and 'content'")
    return value


def json_type(value: Any) -> str:
    """What JSON calls the type of a value."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", dict: "an object", list: "a list"}
    empty = "an empty list" if value == [] else None
    return empty or names.get(type(value), type(value).__name__)
