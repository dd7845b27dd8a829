"""Writes rows, each format in its own way."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO, Any, Protocol

from .csv_reader import DELIMITERS
from .files import COLUMNAR, FORMATS, OutputFile
from .streams import compressed
from .tables import OutputSchema, Table, json_text, plain_value


class Writer(Protocol):
    """Writes one row; returns why a value could not be stored, or None."""

    def write(self, record: Mapping[str, Any]) -> str | None: ...


@contextmanager
def open_writer(path: str, target: OutputFile, layout: OutputSchema) -> Iterator[Writer]:
    """A writer of the format of `target` into the file `path`, which is whole when the context ends without an error."""
    if target.format not in FORMATS:
        from ...registry import registry

        with registry().collect("vcls_writers")[target.format](path) as writer:
            yield writer
    elif target.format in COLUMNAR:
        from .columnar_writer import ColumnarRows

        with ColumnarRows(path, target.format, layout) as writer:
            yield writer
    else:
        with (
            open(path, "wb") as raw,
            compressed(raw, target.compression) as stream,
            _text(stream, target, layout) as writer,
        ):
            yield writer


def _text(stream: IO[bytes], target: OutputFile, layout: OutputSchema) -> AbstractContextManager[Writer]:
    if target.format in DELIMITERS:
        return _Csv(stream, DELIMITERS[target.format], layout)
    if target.format == "json":
        return _JsonArray(stream)
    return nullcontext(JsonLines(stream) if target.format == "jsonl" else _Labels(stream, layout.results))


def _json_bytes(record: Mapping[str, Any]) -> bytes:
    try:
        return json_text(record).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can write
        return json.dumps(record, default=plain_value).encode()


class JsonLines:
    """A row on each line."""

    def __init__(self, stream: IO[bytes], flush: bool = False) -> None:
        self._stream, self._flush = stream, flush

    def write(self, record: Mapping[str, Any]) -> None:
        self._stream.write(_json_bytes(record) + b"\n")
        if self._flush:
            self._stream.flush()


class _JsonArray:
    """An array with a row on each line."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._before = stream, b"[\n"

    def __enter__(self) -> _JsonArray:
        return self

    def write(self, record: Mapping[str, Any]) -> None:
        self._stream.write(self._before + _json_bytes(record))
        self._before = b",\n"

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._stream.write(b"[]\n" if self._before == b"[\n" else b"\n]\n")


class _Labels:
    """A label on each line: the labels joined by commas, or the numbers where there is no label; empty for a bad row."""

    def __init__(self, stream: IO[bytes], results: Collection[str]) -> None:
        self._stream = stream
        self._names = [name for name in ("label", "labels", "value", "score", "logits") if name in results]

    def write(self, record: Mapping[str, Any]) -> None:
        value = next((record[name] for name in self._names if record[name] is not None), "")
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        self._stream.write(" ".join(text.splitlines()).encode("utf-8", "replace") + b"\n")


class _Csv(Table):
    """CSV or TSV: null is empty, true and false are in lower case, lists and maps are JSON text."""

    def __init__(self, stream: IO[bytes], delimiter: str, layout: OutputSchema) -> None:
        self._text = io.TextIOWrapper(stream, "utf-8", errors="replace", newline="", write_through=True)
        self._writer = csv.writer(self._text, delimiter=delimiter, lineterminator="\n")
        # the one above leaves a carriage return bare, which readers take for the end of a line
        self._quoting = csv.writer(self._text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
        super().__init__(layout)

    def __enter__(self) -> _Csv:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
            self._text.flush()
        self._text.detach()

    def begin(self, columns: Sequence[str], first: Sequence[Mapping[str, Any]]) -> None:
        self._writer.writerow(columns)

    def add(self, row: dict[str, Any]) -> None:
        cells = [_cell(value) for value in row.values()]
        bare = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (self._quoting if bare else self._writer).writerow(cells)


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | list | dict | tuple):
        return json_text(value)
    return value if isinstance(value, int | float) else plain_value(value)
