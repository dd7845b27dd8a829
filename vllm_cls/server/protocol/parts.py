"""The parts of a message's content: texts, and what names or holds an image or a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RequestError

_KEYS = {
    "image_url": "image", "input_image": "image", "video_url": "video", "image_embeds": "image_embeds",
    "video_embeds": "video_embeds",
}  # fmt: skip
"""Types of parts, and what `multi_modal_data` calls what they hold."""
_TEXTS = ("text", "input_text")
_URL = {
    "anyOf": [{"type": "string"}, {"type": "object", "required": ["url"], "properties": {"url": {"type": "string"}}}]
}
_EMBEDS = {"anyOf": [{"type": "string"}, {"type": "object"}]}


@dataclass(frozen=True, eq=False)
class MediaPart:
    """An image or a video as a request names or holds it.

    Args:
        kind: the type of the part.
        value: a URL; of embeddings, base64 or a mapping of names to base64.
        place: where it is in the request.
    """

    kind: str
    value: Any
    place: str

    @property
    def key(self) -> str:
        """What `multi_modal_data` calls it."""
        return _KEYS[self.kind]

    @property
    def modality(self) -> str:
        """`image` or `video`."""
        return self.key.removesuffix("_embeds")


def read_content(content: Any, param: str, place: str) -> str | list[dict[str, Any] | MediaPart]:
    """The text of a message, its parts joined by new lines as vLLM joins them; or its parts, where some are media.

    Raises:
        RequestError: there is something else in it.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{param}: content must be a text, or a list of parts such as those of type text.", param)
    parts = [_part(each, param, f"{place}.content[{index}]") for index, each in enumerate(content)]
    texts = [each for each in parts if isinstance(each, str)]
    if len(texts) == len(parts):
        return "\n".join(texts)
    return [{"type": "text", "text": each} if isinstance(each, str) else each for each in parts]


def _part(part: Any, param: str, place: str) -> str | MediaPart:
    kind: Any = type(part).__name__
    if isinstance(part, dict):
        kind = part.get("type") if "type" in part else next((name for name in _KEYS if name in part), None)
        if kind in _TEXTS and isinstance(part.get("text"), str):
            return str(part["text"])
        if isinstance(kind, str) and kind in _KEYS:
            return MediaPart(kind, _value(part, kind, param, place), place)
    raise RequestError(f"{param}: this server reads texts; there is a part of type {str(kind)[:50]!r}.", param)


def _value(part: Mapping[str, Any], kind: str, param: str, place: str) -> Any:
    name = "image_url" if kind == "input_image" else kind
    value = part.get(name)
    if kind.endswith("_embeds"):
        if isinstance(value, str) or (isinstance(value, dict) and value):
            return value
        raise RequestError(
            f"{place}: a part of type {kind!r} holds base64 of a tensor, or an object of names and such texts.", param
        )
    if isinstance(value, dict):
        value = value.get("url")
    if not isinstance(value, str) or not value:
        raise RequestError(f"{place}: a part of type {kind!r} holds {name!r}: a URL, or an object with 'url'.", param)
    return value


def media_in(messages: Sequence[Mapping[str, Any]]) -> list[MediaPart]:
    """What the messages hold beside texts, in its order."""
    contents = [each["content"] for each in messages if isinstance(each.get("content"), list)]
    return [part for content in contents for part in content if isinstance(part, MediaPart)]


def schema(
    modalities: Sequence[str], kinds: Sequence[str] = tuple(_KEYS), text: Mapping[str, Any] = {"type": "string"}
) -> dict[str, Any]:
    """What a part may be, for a model that reads these modalities beside texts.

    Args:
        kinds: of parts beside texts that a route takes.
        text: what a text may be.
    """
    forms: list[dict[str, Any]] = [_form("text", {"text": dict(text)})]
    for kind, key in _KEYS.items():
        if kind in kinds and key.removesuffix("_embeds") in modalities:
            name = "image_url" if kind == "input_image" else kind
            forms.append(_form(kind, {name: _EMBEDS if kind == key else _URL}))
    return {"anyOf": forms}


def _form(kind: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type", *properties],
        "properties": {"type": {"const": kind}, **properties},
    }
