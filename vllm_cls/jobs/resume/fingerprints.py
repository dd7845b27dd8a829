"""What the bytes of a job's output depend on: its inputs, options, model and versions, as JSON values to compare."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..formats.files import InputFile
from ..formats.finding import STDIO
from ..formats.locations import is_url, opened, told

if TYPE_CHECKING:
    from ...llm import LLM
    from ..remote import RemoteModel

WHOLE = 16 << 20
"""Bytes of the largest file that is hashed whole; of a larger one, this much of its beginning and of its end."""

_DISTRIBUTIONS = ("vllm-cls", "torch", "transformers", "tokenizers", "numpy", "pyarrow")
_LONGEST = 160  # of a value in a message; a path keeps its end
_ABSENT = object()


def of_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Size and hash; of a large file also its time, because its middle is not read."""
    found = os.stat(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(WHOLE))
        if found.st_size <= WHOLE:
            return {"size": found.st_size, "sha256": digest.hexdigest()}
        file.seek(max(WHOLE, found.st_size - WHOLE))
        digest.update(file.read(WHOLE))
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256_of_ends": digest.hexdigest()}


def of_inputs(sources: Iterable[InputFile]) -> list[dict[str, Any]]:
    """The inputs in their order; of what can be read once only, no more than its name."""
    return [_of_input(source) for source in sources]


def _of_input(source: InputFile) -> dict[str, Any]:
    read = {"format": source.format, "delimiter": source.delimiter, "encoding": source.encoding}
    found = {name: value for name, value in read.items() if value is not None}
    if source.size is None:
        return {"path": "standard input" if source.path == STDIO else "a pipe"} | found
    if is_url(source.path):
        return {"path": source.name} | found | of_object(source.path)
    return {"path": os.path.abspath(source.path)} | found | of_file(source.path)


def of_object(url: str) -> dict[str, Any]:
    """Size and time, which an object store changes with the content."""
    system, path = opened(url)
    with told(url, "cannot be read"):
        info = system.get_file_info(path)
    return {"size": info.size, "mtime_ns": info.mtime_ns}


def of_model(llm: LLM | RemoteModel) -> dict[str, Any]:
    """How the model describes itself, the number of threads and the device included, and the files that it was read from."""
    files = {str(path): of_file(path) for path in llm.checkpoint_files}
    return {**llm.describe(), "files": files}


def of_versions() -> dict[str, str]:
    """The packages that numbers and files come from."""
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _DISTRIBUTIONS}


def plain(value: Any) -> Any:
    """A value as it is after it was written as JSON and read."""
    return json.loads(json.dumps(value, default=str))


def differences(before: Any, now: Any) -> list[str]:
    """What has changed from one JSON value to another, each as "name: old → new"."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return [
        f"{name}: {_shown(old.get(name, _ABSENT))} → {_shown(new.get(name, _ABSENT))}"
        for name in {**old, **new}
        if old.get(name, _ABSENT) != new.get(name, _ABSENT)
    ]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values that hold no others, each with the names on the way to it."""
    inner: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value, 1))
    for key, each in inner:
        yield from _leaves(each, f"{name} {key}".strip())
    if not inner:
        yield name, value


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
