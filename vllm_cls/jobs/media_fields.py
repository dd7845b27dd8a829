"""Columns of images and videos."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from ..errors import PromptError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
_BEGINNINGS = (
    "iVBORw0KGgo",
    "/9j/",
    "R0lGOD",
    "UklGR",
    "Qk",
    "SUkq",
    "TU0A",
    "AAAA",
    "GkXfo",
    "T2dnUw",
    "RkxW",
    "MCay",
)
"""What base64 of PNG, JPEG, GIF, RIFF (WebP, AVI), BMP, TIFF, MP4, Matroska, Ogg, FLV and ASF begins with."""


def items_in(name: str, value: Any, folder: str) -> list[Any]:
    """What one cell holds, as `multi_modal_data` takes it.

    Args:
        name: of the column.
        value: a path, relative to `folder`; a URL; bytes; base64; a struct of `bytes` and `path`, as Hugging Face data sets
            write them; or a list of these, in CSV as JSON text. Nothing where it is null, or empty.

    Raises:
        PromptError: it is none of these.
    """
    if value is None or value == "":  # CSV has no null
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise PromptError(f"the field {name!r} is not a JSON list: {error}") from error
    values = value if isinstance(value, list) else [value]
    return [_item(name, each, folder) for each in values]


def _item(name: str, value: Any, folder: str) -> Any:
    if isinstance(value, str) and value.strip():
        return _text(value, folder)
    if isinstance(value, Mapping) and {"bytes", "path", "base64"} & value.keys():
        path = value.get("path")
        return {**value, "path": os.path.join(folder, path)} if isinstance(path, str) else value
    if isinstance(value, bytes):
        return value
    kind = "an empty text" if isinstance(value, str) else type(value).__name__
    raise PromptError(
        f"the field {name!r} holds {kind}; give a path, a URL, bytes, base64 or a struct of bytes and path"
    )


def _text(value: str, folder: str) -> Any:
    if _SCHEME.match(value):
        return value
    if value.startswith(_BEGINNINGS) and _BASE64.fullmatch(value):
        return {"base64": value}
    return os.path.join(folder, value)
