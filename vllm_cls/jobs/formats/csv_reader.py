"""CSV and TSV, record by record. Every cell is a string: `007` stays `007`.

Where the format's own separator does not occur in the header, and another one does, that one is used: a spreadsheet
writes semicolons where numbers have decimal commas.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ...errors import JobError
from ..rows import InputRow
from .streams import LINE_LIMIT, RETURNS_ALONE, Stream

DELIMITERS = {"csv": ",", "tsv": "\t"}
_DETECTED = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_EXCEL = re.compile(r'"?sep=(.)"?\s*')  # a first line by which a file tells Excel its separator
RECORD_LIMIT = 8 * 2**20
"""Characters of the longest record: where a quote is never closed, the search for its end stops there."""


class _TooLong(Exception):
    pass


class _Text(NamedTuple):
    """A line with its ending; bytes that are not UTF-8 are lone surrogates."""

    number: int
    text: str
    too_long: bool
    offset: int


class Record(NamedTuple):
    number: int
    cells: list[str]
    error: str | None
    offset: int


def read_csv(
    stream: Stream, kind: str, note: Callable[[str], None] | None = None, given: str | None = None
) -> Iterator[InputRow]:
    """The rows below the header; blank lines are no rows.

    Args:
        kind: "csv" or "tsv".
        note: called with messages on the file.
        given: the delimiter; None is as the header tells.

    Raises:
        JobError: the header cannot be used.
    """
    delimiter, records = _open(stream, kind, given)
    if note is not None and delimiter not in (DELIMITERS[kind], given):
        note(f"its columns are separated by {_DETECTED.get(delimiter, repr(delimiter))}, and are read so")
    names = _names(next(records, None))
    for number, cells, error, offset in records:
        if error is None and len(cells) != len(names):
            error = f"the row has {len(cells)} cells and the header {len(names)}"
        yield InputRow(dict(zip(names, cells, strict=False)), number, offset, error)


def header(stream: Stream, kind: str, given: str | None = None) -> list[str]:
    """The names of the columns.

    Raises:
        JobError: there is no header, or it cannot be used.
    """
    return _names(next(_open(stream, kind, given)[1], None))


def _open(stream: Stream, kind: str, given: str | None) -> tuple[str, Iterator[Record]]:
    """The delimiter, and the records, of which the first is the header."""
    own, texts = given or DELIMITERS[kind], _texts(stream)
    first = next((text for text in texts if not _is_blank(text, own)), None)
    if first is None:
        return own, iter(())
    declared = _EXCEL.fullmatch(first.text)
    if declared is not None:
        delimiter = given or declared[1]
        return delimiter, _records(texts, delimiter)
    delimiter = own if given or first.too_long else _delimiter(first.text, own)
    return delimiter, _records(itertools.chain([first], texts), delimiter)


def _delimiter(line: str, own: str) -> str:
    """The delimiter of a header: the format's own, unless it does not occur and exactly one other does."""

    def parts(delimiter: str) -> bool:
        return len(next(csv.reader([line], delimiter=delimiter), [])) > 1

    try:
        others = [] if parts(own) else [each for each in _DETECTED if parts(each)]
    except csv.Error:  # a cell beyond Python's limit
        return own
    return others[0] if len(others) == 1 else own


def _names(record: Record | None) -> list[str]:
    if record is None:
        raise JobError("the file is empty; its first line must name the columns.")
    if record.error is not None:
        raise JobError(f"the header, line {record.number}, cannot be read: {record.error}.")
    if any("\r" in cell and "\n" not in cell for cell in record.cells):
        raise JobError(RETURNS_ALONE)
    names = [cell.strip() or f"column_{place}" for place, cell in enumerate(record.cells, 1)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise JobError(f"the header has the column {twice[0]!r} twice; give each column a name of its own.")
    return names


def _is_blank(line: _Text, delimiter: str) -> bool:
    return not line.text.strip(" \r\n" if delimiter == "\t" else " \t\r\n")


def _records(source: Iterator[_Text], delimiter: str) -> Iterator[Record]:
    """The records, each with its error.

    A quoted cell may hold line ends. Where its quote is never closed properly, its first line alone is
    wrong, and reading goes on with the second.
    """
    waiting: deque[_Text] = deque()
    while True:
        first = waiting.popleft() if waiting else next(source, None)
        if first is None:
            return
        if first.too_long:
            yield Record(first.number, [], f"the line is longer than {LINE_LIMIT >> 20} MiB", first.offset)
        elif '"' not in first.text:
            if not _is_blank(first, delimiter):
                yield _record(first, first.text.removesuffix("\n").removesuffix("\r").split(delimiter))
        else:
            yield _quoted(first, source, waiting, delimiter)


def _quoted(first: _Text, source: Iterator[_Text], waiting: deque[_Text], delimiter: str) -> Record:
    """The record that begins at `first`, a line with a quote."""
    used = [first]

    def feed() -> Iterator[str]:
        size = len(first.text)
        yield first.text
        while line := (waiting.popleft() if waiting else next(source, None)):
            used.append(line)
            size += len(line.text)
            if size > RECORD_LIMIT or line.too_long:
                raise _TooLong
            yield line.text

    limit = csv.field_size_limit(2 * RECORD_LIMIT)  # Python's own limit of 131072 is short for a document
    try:
        cells = next(csv.reader(feed(), delimiter=delimiter, strict=True))
        return _record(first, cells, used[-1].offset)
    except (csv.Error, _TooLong) as failure:
        waiting.extendleft(reversed(used[1:]))
        declared = isinstance(failure, csv.Error) and "expected after" in str(failure) and len(used) == 1
        error = f"a quote is in a wrong place ({failure})" if declared else "a quote is opened and not closed"
        return Record(first.number, _readable(first.text).rstrip("\r\n").split(delimiter), error, first.offset)
    finally:
        csv.field_size_limit(limit)


def _record(first: _Text, cells: list[str], offset: int | None = None) -> Record:
    error = None
    clean = [_readable(cell) for cell in cells]
    if clean != cells:
        error = "invalid UTF-8"
    return Record(first.number, clean, error, first.offset if offset is None else offset)


def _readable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text


def _texts(stream: Stream) -> Iterator[_Text]:
    for line in stream.lines():
        yield _Text(line.number, line.data.decode("utf-8", "surrogateescape"), line.too_long, stream.offset)
