"""Reads rows of files one by one, in constant memory.

A line of JSON lines, CSV, TSV or text that cannot be read costs itself alone: its row has an error and
keeps its place. A file that is damaged as a whole (cut off, not JSON, not Parquet) ends the job.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from ..rows import InputRow, json_type
from .files import COLUMNAR, FORMATS, InputFile
from .finding import STDIO
from .json_reader import read_json
from .streams import LINE_LIMIT, InputLine, Stream, open_stream

_MOST_NOTES = 5
_INVALID = "invalid UTF-8"


def read_rows(sources: Iterable[InputFile], notes: list[str] | None = None) -> Generator[InputRow, None, None]:
    """The rows of all sources, in order, each with its place and the share of the bytes read so far.

    Args:
        notes: collects messages on the files.

    Raises:
        JobError: a file cannot be opened, or is damaged as a whole.
    """
    sources = list(sources)
    sizes = [source.size for source in sources]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    before = 0
    for source in sources:
        for row in _rows(source, [] if notes is None else notes):
            row.source, row.unit = source.name, source.unit
            row.done = min(1.0, (before + row.offset) / total) if total else None
            yield row
        before += source.size or 0


def columns_of(source: InputFile) -> list[str] | None:
    """The columns that a source declares, or None where each row has its own, or it can be read once only."""
    if source.path == STDIO or source.size is None:
        return None
    if source.format == "txt":
        return ["text"]
    if source.format in ("csv", "tsv"):
        from .csv_reader import header

        with open_stream(source) as stream:
            return header(stream, source.format, source.delimiter)
    if source.format in COLUMNAR:
        from .columnar_reader import schema_of

        return list(schema_of(source).names)
    return None


def _rows(source: InputFile, notes: list[str]) -> Iterator[InputRow]:
    if source.format in COLUMNAR:
        from .columnar_reader import read_columnar

        yield from read_columnar(source)
    elif source.format not in FORMATS:
        yield from _plugin_rows(source)
    else:
        yield from _text_rows(source, notes)


def _text_rows(source: InputFile, notes: list[str]) -> Iterator[InputRow]:
    def note(text: str) -> None:
        if len(notes) < _MOST_NOTES:
            notes.append(f"{source.name}: {text}")

    noted = False
    with open_stream(source) as stream:
        for row in _text_reader(source, note)(stream):
            if row.error is not None and row.error.startswith(_INVALID):
                if source.encoding is not None:
                    row.error = row.error.replace(_INVALID, f"invalid {source.encoding}")
                elif not noted:
                    note(
                        "not all of it is UTF-8; if it was saved on Windows, --encoding cp1252 (encoding='cp1252') reads it"
                    )
                noted = True
            yield row


def _text_reader(source: InputFile, note: Callable[[str], None]) -> Callable[[Stream], Iterator[InputRow]]:
    if source.format in ("csv", "tsv"):
        from .csv_reader import read_csv

        return lambda stream: read_csv(stream, source.format, note, source.delimiter)
    return {"jsonl": read_jsonl, "json": read_json, "txt": read_txt}[source.format]


def _plugin_rows(source: InputFile) -> Iterator[InputRow]:
    from ...registry import registry

    for number, fields in enumerate(registry().collect("vcls_readers")[source.format](source.path), 1):
        if isinstance(fields, dict):
            yield InputRow(fields, number)
        else:
            yield InputRow({}, number, error=f"the reader of {source.format!r} gave {json_type(fields)}, not an object")


def line_text(line: InputLine) -> tuple[str, str | None]:
    """The text of a line without its ending, and what is wrong with its bytes; wrong ones become U+FFFD."""
    data = line.data.removesuffix(b"\n").removesuffix(b"\r")
    if line.too_long:
        return data[:100].decode("utf-8", "replace"), f"the line is longer than {LINE_LIMIT >> 20} MiB"
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return data.decode("utf-8", "replace"), f"invalid UTF-8 at byte {error.start + 1} of the line"


def read_txt(stream: Stream) -> Iterator[InputRow]:
    """A line a text; an empty line is an empty text, which keeps its place."""
    for line in stream.lines():
        line.check()
        text, error = line_text(line)
        yield InputRow({"text": text}, line.number, stream.offset, error)


def read_jsonl(stream: Stream) -> Iterator[InputRow]:
    """A line an object; blank lines are no rows."""
    for line in stream.lines():
        text, error = line_text(line)
        if not text.strip():
            continue
        fields: Any = {}
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as failure:
            line.check()
            error = error or f"not JSON: {failure.msg} at character {failure.pos + 1} of the line"
        except (ValueError, RecursionError) as failure:  # a number of thousands of digits, endless brackets
            error = error or f"not JSON that can be read: {failure}"
        if not isinstance(fields, dict):
            error, fields = error or f"the line is {json_type(fields)}, not an object", {}
        yield InputRow(fields, line.number, stream.offset, error)
