"""Lists in one option: items separated by a character, which a backslash escapes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError


def split(text: str, mark: str, times: int = -1) -> list[str]:
    """Split at unescaped separators, at most `times` times."""
    parts: list[str] = []
    part, rest = "", iter(text)
    for character in rest:
        if character == "\\":
            part += character + next(rest, "")
        elif character == mark and len(parts) != times:
            parts.append(part)
            part = ""
        else:
            part += character
    return [*parts, part]


def unescape(text: str) -> str:
    r"""An item without its escapes: `\,` is `,`, and `\\` a backslash."""
    return re.sub(r"\\([,=|\\])", r"\1", text)


def parse_label_tokens(value: Any) -> dict[str, list[str]]:
    r"""`'negative= bad| terrible,positive= good'`, JSON, or a mapping → label → its texts.

    Spaces of texts count: most vocabularies have a word's token with the space before it. An item without `=`
    is a label whose text is its own name; names have no spaces around them. `\,`, `\=`, `\|` and `\\` are these characters.

    Raises:
        ConfigError: it is empty, or a label has no text or comes twice.
    """
    if isinstance(value, str):
        value = _from_json(value) if value.lstrip().startswith("{") else _from_text(value)
    if not isinstance(value, Mapping) or not value:
        raise ConfigError("--label-tokens needs 'label=text,label=text', texts of one label separated by |.")
    parsed = {str(label): [texts] if isinstance(texts, str) else texts for label, texts in value.items()}
    for label, texts in parsed.items():
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"--label-tokens: the label {label!r} has {texts!r}; give it a text, or a list of them.")
        if not texts or not all(texts):
            raise ConfigError(f"--label-tokens: the label {label!r} has an empty text.")
    return {label: list(texts) for label, texts in parsed.items()}


def _from_json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise ConfigError(f"--label-tokens {value!r} is not JSON ({error}).") from error


def _from_text(value: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in split(value, ","):
        written, *texts = split(item, "=", 1)
        label = unescape(written.strip() or written)
        if label in found:
            raise ConfigError(f"--label-tokens: the label {label!r} comes twice; join its texts with |.")
        found[label] = [unescape(text) for text in split(texts[0], "|")] if texts else [unescape(written)]
    return found
