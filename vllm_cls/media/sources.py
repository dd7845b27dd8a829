"""From what names or holds a medium, a path, a URL, base64 text or bytes, to its bytes."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ..errors import PromptError, shown

if TYPE_CHECKING:
    from .policy import Allowance, MediaPolicy

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # of two letters or more: C: is a drive
_LONGEST_PATH = 1000  # characters that a message repeats
_BLANKS = re.compile(r"[ \t\r\n]+")
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def is_encoded(value: Any) -> bool:
    """Whether a value names or holds encoded bytes, not pixels or numbers."""
    if isinstance(value, Mapping):
        return bool({"bytes", "path", "base64"} & value.keys())
    return isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview))


def read_bytes(value: Any, allowance: Allowance) -> bytes:
    """The encoded bytes that a value names or holds.

    Args:
        value: bytes, a path, a URL (`data:`, `http:`, `https:`, `file:`), or a mapping with one of `bytes`, `path` and
            `base64`; of `bytes` and `path`, as Hugging Face data sets write both, the bytes where there are any.

    Raises:
        PromptError: they may not be read, cannot be, or are too many.
    """
    if isinstance(value, Mapping):
        if value.get("base64") is not None:
            return from_base64(value["base64"], allowance.policy)
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if value is None:
            raise PromptError("it has neither bytes nor a path.")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _bounded(bytes(value), allowance.policy)
    text = os.fspath(value)
    if isinstance(text, str) and isinstance(value, str) and _SCHEME.match(text):
        return _from_url(text, allowance)
    if not allowance.policy.read_paths:
        raise PromptError("it must be a URL of data:, http:, https: or file:; paths are not read here.")
    return _from_path(Path(os.fsdecode(text)), allowance.policy)


def from_base64(text: Any, policy: MediaPolicy) -> bytes:
    """The bytes of base64 text, which may be broken into lines.

    Raises:
        PromptError: it is not base64, or too long.
    """
    if not isinstance(text, (str, bytes)):
        raise PromptError(f"base64 is a text; got {shown(text)}.")
    if len(text) > policy.max_bytes * 2:
        raise _too_many(policy)
    try:
        packed = _BLANKS.sub("", text if isinstance(text, str) else text.decode("ascii"))
        data = base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PromptError(f"it is not base64: {error}.") from error
    return _bounded(data, policy)


def _bounded(data: bytes, policy: MediaPolicy) -> bytes:
    if not data:
        raise PromptError("it is empty.")
    if len(data) > policy.max_bytes:
        raise _too_many(policy)
    return data


def _too_many(policy: MediaPolicy) -> PromptError:
    return PromptError(f"more than the {policy.max_bytes:,} bytes allowed.")


def _from_url(url: str, allowance: Allowance) -> bytes:
    scheme = url.split(":", 1)[0].lower()
    if scheme == "data":
        return _from_data_url(url, allowance.policy)
    if scheme == "file":
        return _from_file_url(url, allowance.policy)
    from .fetch import fetch

    return _bounded(fetch(url, allowance), allowance.policy)


def _from_data_url(url: str, policy: MediaPolicy) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise PromptError("a data: URL must hold base64, as in 'data:image/png;base64,…'.")
    return from_base64(body, policy)


def _from_file_url(url: str, policy: MediaPolicy) -> bytes:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise PromptError(f"{shown(url)} is not a URL: {error}.") from error
    if parts.netloc.lower() not in ("", "localhost"):
        raise PromptError("a file: URL names no host; write it as file:///folder/name.")
    if not policy.read_paths and not policy.allowed_local_media_path:
        raise PromptError("file: URLs are not read here; --allowed-local-media-path names a folder that may be.")
    return _from_path(Path(unquote(parts.path)), policy)


def _from_path(path: Path, policy: MediaPolicy) -> bytes:
    try:
        real = path.resolve(strict=True)
        if policy.allowed_local_media_path:
            root = Path(policy.allowed_local_media_path).resolve(strict=True)
            if not real.is_relative_to(root):
                raise _not_readable(path, policy)
        # What was resolved has no link in it: one that is put there since is not followed.
        with open(os.open(real, _OPEN_FLAGS), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise PromptError(f"{_named(path, policy)} is not a file.")
            return _bounded(file.read(policy.max_bytes + 1), policy)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in it; a circle of links
        if isinstance(error, PromptError):
            raise
        if not policy.read_paths:
            raise _not_readable(path, policy) from None
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise PromptError(f"{_named(path, policy)} cannot be read: {reason}.{_hint(path)}") from error


def _not_readable(path: Path, policy: MediaPolicy) -> PromptError:
    """One message for what is not there and what is outside: who asks learns nothing of other folders."""
    told = (
        "the folder of --allowed-local-media-path" if not policy.read_paths else repr(policy.allowed_local_media_path)
    )
    return PromptError(f"{_named(path, policy)} is not a file under {told}.")


def _named(path: Path, policy: MediaPolicy) -> str:
    named = path.name if not policy.read_paths else str(path)
    return repr(named) if len(named) <= _LONGEST_PATH else shown(named)


def _hint(path: Path) -> str:
    return " Base64 is given as {'base64': …}, or as a data: URL." if len(str(path)) > _LONGEST_PATH else ""
