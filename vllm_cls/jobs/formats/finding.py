"""From the inputs that a job is given to files: globs, folders, URLs, and the columns that the folders on the way are."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from ...errors import JobError
from .locations import is_url, joined, opened, path_in, shown, told, without_scheme

STDIO = "-"
_NULL = "__HIVE_DEFAULT_PARTITION__"
_INT32 = range(-(2**31), 2**31)


class Found(NamedTuple):
    """A file.

    Args:
        name: its path or URL; "-" is standard input.
        size: its bytes; None of what can be read once only.
        folders: the folders that the user has named or let be searched, in which `key=value` is a column.
    """

    name: str
    size: int | None
    folders: str


def find_files(pattern: str) -> Iterator[Found]:
    """The files that one input names, in order.

    Args:
        pattern: a path, a URL, a folder (then its `.parquet` files), a glob or "-".

    Raises:
        JobError: nothing matches.
    """
    pattern = without_scheme(pattern)
    if is_url(pattern):
        yield from _find_objects(pattern)
    elif pattern == STDIO:
        yield Found(pattern, None, "")
    elif os.path.isdir(pattern):
        inside = glob.glob(os.path.join(glob.escape(pattern), "**", "*.parquet"), recursive=True)
        below = [(path, os.path.relpath(path, pattern)) for path in inside if os.path.isfile(path)]
        yield from _of_a_folder(pattern, [Found(path, os.path.getsize(path), inner) for path, inner in below])
    elif os.path.exists(pattern):  # or a pipe, such as <(command) makes
        yield Found(pattern, os.path.getsize(pattern) if os.path.isfile(pattern) else None, pattern)
    else:
        found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
        if not found:
            what = "no file matches" if glob.has_magic(pattern) else "there is no file"
            raise JobError(f"{what} {pattern!r} (looked in {os.getcwd()}).")
        yield from (Found(path, os.path.getsize(path), path) for path in found)


def _of_a_folder(folder: str, files: Sequence[Found]) -> list[Found]:
    """Without what other programs keep beside the data, as in pyarrow: names that begin with a dot or an underscore."""
    seen = [file for file in files if not re.search(r"(^|[/\\])[._]", file.folders)]
    if not seen:
        example = f"{folder.rstrip('/')}/*.jsonl"
        raise JobError(
            f"the input {folder} is a folder; name its files, such as {example!r} (only of .parquet files a folder is enough)."
        )
    return sorted(seen)


def _find_objects(url: str) -> Iterator[Found]:
    from pyarrow import fs

    key = path_in(url)
    system, path = opened(url)
    with told(url, "cannot be read"):
        if glob.has_magic(key):
            below = _objects_below(url, _folder_of(key))
            found = sorted(each for each in below if _fits(each.folders.split("/"), key.split("/")))
            if not found:
                raise JobError(f"no file matches {shown(url)!r}, or its bucket is not open to these credentials.")
            yield from found
            return
        info = system.get_file_info(path)
        if info.type == fs.FileType.File:
            yield Found(url, info.size, key)
        elif info.type == fs.FileType.Directory:
            inside = [each for each in _objects_below(url, key) if each.folders.endswith(".parquet")]
            yield from _of_a_folder(
                shown(url), [each._replace(folders=each.folders.removeprefix(key).lstrip("/")) for each in inside]
            )
        else:
            raise JobError(f"there is no file {shown(url)!r}, or its bucket is not open to these credentials.")


def _objects_below(url: str, folder: str) -> Iterator[Found]:
    from pyarrow import fs

    system, path = opened(joined(url, folder))
    root = len(path) - len(folder)
    for info in system.get_file_info(fs.FileSelector(path.rstrip("/"), allow_not_found=True, recursive=True)):
        if info.type == fs.FileType.File:
            yield Found(joined(url, info.path[root:]), info.size, info.path[root:])


def _folder_of(pattern: str) -> str:
    """The folders of a glob before the first that has a mark."""
    plain = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.split("/"))
    return "/".join(plain)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a glob, folder by folder; `**` is any number of them."""
    if not pattern or not parts:
        return not parts and set(pattern) <= {"**"}
    if pattern[0] == "**":
        return any(_fits(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def partitions_of(folders: Sequence[str]) -> list[tuple[tuple[str, int | str | None], ...]]:
    """The columns that the `key=value` folders of each file are, as pyarrow.dataset has them: int32 where all are, else texts.

    Args:
        folders: the path of each file.
    """
    texts = [
        [(key, unquote(value)) for key, mark, value in (part.partition("=") for part in _parts(path)) if mark and key]
        for path in folders
    ]
    present: dict[str, set[str]] = {}
    for key, value in itertools.chain(*texts):
        present.setdefault(key, set()).update({value} - {_NULL})
    numbers = {key for key, values in present.items() if values and all(map(_is_int32, values))}
    return [
        tuple((key, None if value == _NULL else int(value) if key in numbers else value) for key, value in each)
        for each in texts
    ]


def _parts(path: str) -> list[str]:
    return re.split(r"[/\\]", path)[:-1]


def _is_int32(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,10}", text) is not None and int(text) in _INT32
