"""The input and output files of a job and their formats, checked before a model is loaded."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError, JobError, nearest

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "txt")
ALIASES = {"ndjson": "jsonl", "pq": "parquet"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
STDIO = "-"


@dataclass(frozen=True)
class InputFile:
    """One input.

    Args:
        path: as given or as a glob found it; "-" is standard input.
        format: one of FORMATS or a plugin's.
        compression: "gzip", "zstd" or None.
        size: bytes on disk; None for standard input.
    """

    path: str
    format: str
    compression: str | None = None
    size: int | None = None

    @property
    def unit(self) -> str:
        """What a row's number counts."""
        return "line" if self.format in ("jsonl", "csv", "tsv", "txt") else "row"

    @property
    def name(self) -> str:
        return "standard input" if self.path == STDIO else self.path


@dataclass(frozen=True)
class OutputFile:
    """The output; `path` None is standard output, which takes JSON lines."""

    path: Path | None
    format: str = "jsonl"
    compression: str | None = None


def find_sources(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], format: str | None = None
) -> list[InputFile]:
    """The files that `inputs` name, in order; the matches of a glob are sorted.

    Args:
        inputs: paths, globs or "-" (standard input), one or several.
        format: the format of all of them, whatever their suffixes.

    Raises:
        JobError: nothing matches, or a folder is given.
        ConfigError: a format that nobody reads.
    """
    patterns = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    if not patterns:
        raise ConfigError("no input is given; name a file, a glob or - for standard input.")
    sources = [_source(path, format) for pattern in patterns for path in _expand(os.fspath(pattern))]
    if sum(source.path == STDIO for source in sources) > 1:
        raise ConfigError("standard input (-) is given twice and can be read once only; give it once.")
    return sources


def find_target(
    output: str | os.PathLike[str] | None, sources: Sequence[InputFile], format: str | None = None
) -> OutputFile:
    """Where the results go.

    Args:
        output: a path; None or "-" is standard output.
        sources: the inputs, none of which may be the output.
        format: used where the name of `output` has no known suffix.

    Raises:
        JobError: the output is an input, a folder or no ordinary file, or its folder is missing.
        ConfigError: a format that nobody writes.
    """
    if output is None or os.fspath(output) == STDIO:
        return OutputFile(None)
    path = Path(output)
    if path.is_dir():
        raise JobError(f"the output {path} is a folder; name a file in it, such as {path / 'out.jsonl'}.")
    if not path.parent.is_dir():
        raise JobError(f"the folder {path.parent} of the output {path.name} does not exist; make it first.")
    if path.exists() and not path.is_file():
        raise JobError(f"the output {path} is not an ordinary file; leave -o out to write to standard output.")
    for source in sources:
        if source.path != STDIO and path.exists() and path.samefile(source.path):
            raise JobError(f"the output {path} is also an input and would be overwritten; choose another name.")
    found, compression = split_name(path.name)
    kind = _known(found or format, "writers", path.name)
    _check_compression(kind, compression, path.name)
    return OutputFile(path, kind, compression)


def split_name(name: str) -> tuple[str | None, str | None]:
    """`("jsonl", "gzip")` of "a.JSONL.gz"; a part that the name does not have is None."""
    stem, suffix = os.path.splitext(os.path.basename(name).lower())
    compression = COMPRESSIONS.get(suffix)
    if compression is not None:
        stem, suffix = os.path.splitext(stem)
    return suffix.removeprefix(".") or None, compression


def _expand(pattern: str) -> list[str]:
    if pattern == STDIO or os.path.isfile(pattern):
        return [pattern]
    if os.path.isdir(pattern):
        files = os.path.join(pattern, "*.jsonl")
        raise JobError(f"the input {pattern} is a folder; name its files, such as {files!r}.")
    if os.path.exists(pattern):  # a pipe, such as <(command) makes
        return [pattern]
    found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not found:
        what = "no file matches" if glob.has_magic(pattern) else "there is no file"
        raise JobError(f"{what} {pattern!r} (looked in {os.getcwd()}).")
    return found


def _source(path: str, format: str | None) -> InputFile:
    if path == STDIO:
        kind = _known(format or "jsonl", "readers", "standard input")
        if kind == "parquet":
            raise ConfigError("Parquet cannot be read from standard input, since its index is at its end; name a file.")
        return InputFile(STDIO, kind)
    found, compression = split_name(path)
    kind = _known(format or found, "readers", path)
    _check_compression(kind, compression, path)
    return InputFile(path, kind, compression, os.path.getsize(path) if os.path.isfile(path) else None)


def _known(kind: str | None, role: str, name: str) -> str:
    """The canonical name of a format; plugins are loaded only for one that is not built in."""
    kind = ALIASES.get(kind.lower(), kind.lower()) if kind else None
    if kind in FORMATS:
        return kind
    from ...registry import registry

    known = [*FORMATS, *registry().collect(f"vcls_{role}")]
    if kind in known:
        return kind
    what = f"the format {kind!r} of {name!r} is unknown" if kind else f"the name {name!r} does not tell a format"
    near = nearest(kind or "", known)
    raise ConfigError(f"{what}; known: {', '.join(known)}.{near} --format NAME says it explicitly.")


def _check_compression(kind: str, compression: str | None, name: str) -> None:
    if compression is not None and kind == "parquet":
        raise ConfigError(f"{name!r}: Parquet compresses its own pages; use it without .gz or .zst.")
    if compression is not None and kind not in FORMATS:
        raise ConfigError(f"{name!r}: the plugin's format {kind!r} cannot be combined with .gz or .zst; use it plain.")
