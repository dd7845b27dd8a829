"""The input and output files of a job and their formats, checked before a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import ConfigError, JobError, nearest
from .finding import STDIO, Found, find_files, partitions_of
from .locations import is_url, shown, without_scheme

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "txt")
ALIASES = {"ndjson": "jsonl", "pq": "parquet", "feather": "arrow", "ipc": "arrow"}
COLUMNAR = {"parquet": "Parquet", "arrow": "Arrow"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class InputFile:
    """One input.

    Args:
        path: as given or as a glob found it, or a URL; "-" is standard input.
        format: one of FORMATS or a plugin's.
        compression: "gzip", "zstd" or None.
        size: its bytes; None for standard input and pipes.
        delimiter: between the columns of CSV; None is as the header tells.
        encoding: of its text; None is UTF-8.
        partitions: of a columnar file, the columns that its folders are (`key=value`) with their values.
    """

    path: str
    format: str
    compression: str | None = None
    size: int | None = None
    delimiter: str | None = None
    encoding: str | None = None
    partitions: tuple[tuple[str, int | str | None], ...] = ()

    @property
    def unit(self) -> str:
        """What a row's number counts."""
        return "line" if self.format in ("jsonl", "csv", "tsv", "txt") else "row"

    @property
    def name(self) -> str:
        return "standard input" if self.path == STDIO else shown(self.path)


@dataclass(frozen=True)
class OutputFile:
    """The output; `path` None is standard output, which takes JSON lines, and may be a URL."""

    path: str | None
    format: str = "jsonl"
    compression: str | None = None

    @property
    def name(self) -> str | None:
        return None if self.path is None else shown(self.path)


def find_sources(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    format: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> list[InputFile]:
    """The files that `inputs` name, in order; the matches of a glob are sorted.

    Args:
        inputs: paths, URLs, globs, folders of Parquet files or "-" (standard input), one or several.
        format: the format of all of them, whatever their suffixes.
        delimiter: the character between the columns of CSV and TSV; None is as each header tells.
        encoding: a text encoding that Python knows; None is UTF-8.

    Raises:
        JobError: nothing matches, or a folder without Parquet files is given.
        ConfigError: a format that nobody reads; a delimiter or an encoding that cannot be.
    """
    patterns = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    if not patterns:
        raise ConfigError("no input is given; name a file, a glob or - for standard input.")
    found = [each for pattern in patterns for each in find_files(os.fspath(pattern))]
    sources = [_source(each, format) for each in found]
    if sum(source.path == STDIO for source in sources) > 1:
        raise ConfigError("standard input (-) is given twice and can be read once only; give it once.")
    columns = partitions_of(
        [each.folders if source.format in COLUMNAR else "" for each, source in zip(found, sources, strict=True)]
    )
    sources = [replace(source, partitions=each) for source, each in zip(sources, columns, strict=True)]
    return _as_text(sources, delimiter, encoding)


def _as_text(sources: Sequence[InputFile], delimiter: str | None, encoding: str | None) -> list[InputFile]:
    """The sources with the options of text files, which must mean something for at least one of them."""
    if delimiter is not None:
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise ConfigError(f"delimiter={delimiter!r} must be one character, such as ';', and no quote or line end.")
        if not any(source.format in ("csv", "tsv") for source in sources):
            raise ConfigError(f"delimiter={delimiter!r} is for CSV and TSV, and no input is one; leave it out.")
    if encoding is not None:
        try:
            "x".encode(encoding)
        except LookupError as error:
            raise ConfigError(f"encoding={encoding!r} is none that Python knows; use one such as 'cp1252'.") from error
        if not any(source.format in FORMATS and source.format not in COLUMNAR for source in sources):
            raise ConfigError(f"encoding={encoding!r} is for files of text, and no input is one; leave it out.")
    return [replace(source, delimiter=delimiter, encoding=encoding) for source in sources]


def find_target(
    output: str | os.PathLike[str] | None, sources: Sequence[InputFile], format: str | None = None
) -> OutputFile:
    """Where the results go.

    Args:
        output: a path or a URL; None or "-" is standard output.
        sources: the inputs, none of which may be the output.
        format: used where the name of `output` has no known suffix.

    Raises:
        JobError: the output is an input, a folder or no ordinary file, or its folder is missing.
        ConfigError: a format that nobody writes.
    """
    if output is None or os.fspath(output) == STDIO:
        return OutputFile(None)
    name = without_scheme(os.fspath(output))
    if is_url(name):
        _check_url(name, sources)
    else:
        _check_path(Path(name), sources)
    found, compression = split_name(name)
    kind = _known(found or format, "writers", os.path.basename(shown(name)))
    _check_compression(kind, compression, os.path.basename(shown(name)))
    return OutputFile(name, kind, compression)


def _check_url(url: str, sources: Sequence[InputFile]) -> None:
    if url.lower().startswith("hf://"):
        raise JobError(
            f"the output {shown(url)}: repositories of Hugging Face are read only here; name a file or s3://."
        )
    if shown(url).endswith("/"):
        raise JobError(f"the output {shown(url)} is a folder; name a file in it, such as {shown(url)}out.jsonl.")
    if any(shown(source.path) == shown(url) for source in sources):
        raise JobError(f"the output {shown(url)} is also an input and would be overwritten; choose another name.")


def _check_path(path: Path, sources: Sequence[InputFile]) -> None:
    if path.is_dir():
        raise JobError(f"the output {path} is a folder; name a file in it, such as {path / 'out.jsonl'}.")
    if not path.parent.is_dir():
        raise JobError(f"the folder {path.parent} of the output {path.name} does not exist; make it first.")
    if path.exists() and not path.is_file():
        raise JobError(f"the output {path} is not an ordinary file; leave -o out to write to standard output.")
    for source in sources:
        if source.path != STDIO and not is_url(source.path) and path.exists() and path.samefile(source.path):
            raise JobError(f"the output {path} is also an input and would be overwritten; choose another name.")


def split_name(name: str) -> tuple[str | None, str | None]:
    """`("jsonl", "gzip")` of "a.JSONL.gz"; a part that the name does not have is None."""
    stem, suffix = os.path.splitext(os.path.basename(shown(name)).lower())
    compression = COMPRESSIONS.get(suffix)
    if compression is not None:
        stem, suffix = os.path.splitext(stem)
    return suffix.removeprefix(".") or None, compression


def _source(file: Found, format: str | None) -> InputFile:
    if file.name == STDIO:
        kind = _known(format or "jsonl", "readers", "standard input")
        if kind in COLUMNAR:
            raise ConfigError(
                f"{COLUMNAR[kind]} cannot be read from standard input, since its index is at its end; name a file."
            )
        return InputFile(STDIO, kind)
    found, compression = split_name(file.name)
    kind = _known(format or found, "readers", shown(file.name))
    _check_compression(kind, compression, shown(file.name))
    if kind not in FORMATS and is_url(file.name):
        raise ConfigError(f"{shown(file.name)}: the plugin's format {kind!r} is read from this machine's files alone.")
    return InputFile(file.name, kind, compression, file.size)


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
    if compression is not None and kind in COLUMNAR:
        raise ConfigError(f"{name!r}: {COLUMNAR[kind]} compresses its own pages; use it without .gz or .zst.")
    if compression is not None and kind not in FORMATS:
        raise ConfigError(f"{name!r}: the plugin's format {kind!r} cannot be combined with .gz or .zst; use it plain.")
