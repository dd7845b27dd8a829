"""Images and videos within chat messages: taken out of their parts, in the order in which a template writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import PromptError, shown

# Types of parts, and the keys under which a part of any type may hold it, with the modality of each.
_KEYS = {
    "image_url": "image", "image": "image", "input_image": "image", "image_pil": "image", "image_embeds": "image_embeds",
    "video_url": "video", "video": "video", "video_embeds": "video_embeds",
}  # fmt: skip
_PART_OF = {"image": "image", "image_embeds": "image", "video": "video", "video_embeds": "video"}


def has_media(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a message has a part that is an image or a video."""
    return any(_key(part) for each in messages for part in _parts(each))


def holds_media(prompt: Any) -> bool:
    """Whether a prompt, in any of its forms, has images or videos."""
    if isinstance(prompt, Mapping):
        if prompt.get("multi_modal_data"):
            return True
        prompt = prompt.get("messages")
    if not isinstance(prompt, (list, tuple)):
        return False
    return has_media([each for each in prompt if isinstance(each, Mapping)])


def without_media(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """Messages as chat templates take them, and what their parts held, by the names of `multi_modal_data`.

    Raises:
        PromptError: a part holds nothing, or one modality comes both in pixels and in embeddings.
    """
    data: dict[str, list[Any]] = {}
    made = []
    for each in messages:
        parts = []
        for part in _parts(each):
            key = _key(part)
            if key is None:
                parts.append(part)
                continue
            name = _KEYS[key]
            data.setdefault(name, []).append(_value(part, key))
            parts.append({"type": _PART_OF[name]})
        made.append({**each, "content": parts} if parts else dict(each))
    for modality in ("image", "video"):
        if modality in data and f"{modality}_embeds" in data:
            raise PromptError(f"a prompt takes {modality}s as pixels or as embeddings, not both.", "messages")
    return made, data


def _parts(message: Mapping[str, Any]) -> Sequence[Any]:
    content = message.get("content")
    return content if isinstance(content, (list, tuple)) else ()


def _key(part: Any) -> str | None:
    """The key that tells a part's modality; None of a text."""
    if not isinstance(part, Mapping):
        return None
    kind = part.get("type")
    if isinstance(kind, str):
        return kind if kind in _KEYS else None
    return next((key for key in _KEYS if part.get(key) is not None), None)


def _value(part: Mapping[str, Any], key: str) -> Any:
    """What a part holds: under its type's name, as OpenAI has it, or under a modality's, as transformers has it."""
    names = [key, f"{_PART_OF[_KEYS[key]]}_url", _PART_OF[_KEYS[key]], "url", "path", "base64"]
    for name in names:
        value = part.get(name)
        if value is None:
            continue
        if name.endswith("_url") or key == "input_image":
            return value.get("url") if isinstance(value, Mapping) and "url" in value else value
        return {"base64": value} if name == "base64" else value
    raise PromptError(f"a part of type {key!r} holds no {_PART_OF[_KEYS[key]]}: {shown(dict(part))}.", "messages")
