"""Small pictures of a row's images, as data URIs."""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Mapping
from typing import Any

from ...errors import PromptError
from ..media_fields import items_in
from ..rows import InputRow

EDGE = 160
"""Pixels of the longer edge at most."""
MOST = 3
"""Of a row."""


def thumbnails(row: InputRow, column: str | None) -> list[str]:
    """The first pictures of a row; none of what lies behind a URL, which is not fetched again, or is no image now."""
    if column is None or row.fields.get(column) is None:
        return []
    try:
        held = [_bytes_of(item) for item in items_in(column, row.fields[column], row.folder)[:MOST]]
        return [_thumbnail(data) for data in held if data is not None]
    except (PromptError, OSError, binascii.Error):
        return []


def _bytes_of(item: Any) -> bytes | None:
    if isinstance(item, Mapping):
        if item.get("bytes") is not None:
            return bytes(item["bytes"])
        if item.get("base64") is not None:
            return base64.b64decode(item["base64"])
        item = item.get("path")
    if isinstance(item, str) and os.path.isfile(item):
        with open(item, "rb") as file:
            return file.read()
    return item if isinstance(item, bytes) else None


def _thumbnail(data: bytes) -> str:
    from ...media.images import from_bytes
    from ...media.policy import Allowance, MediaPolicy

    image = from_bytes(data, Allowance(MediaPolicy())).pixels.copy()
    image.thumbnail((EDGE, EDGE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
