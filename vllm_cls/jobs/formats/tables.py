"""Output formats with fixed columns (CSV, Parquet)."""

from __future__ import annotations

import abc
import base64
import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..results.result_columns import ADDED_TYPES, ERROR, TRUNCATED
from .files import InputFile

FIRST_ROWS = 10_000


@dataclass(frozen=True)
class OutputSchema:
    """The columns of an output.

    Args:
        names: the kept columns by the input's columns, where these are known before the first row; else None.
        results: the result columns with their types, `truncated` and `error` not among them.
        sources: the inputs, whose Parquet schemas give the types of the kept columns.
    """

    names: Mapping[str, str] | None
    results: Mapping[str, Any]
    sources: Sequence[InputFile] = ()

    @property
    def all_results(self) -> dict[str, Any]:
        """The result columns with their types, `truncated` and `error` last."""
        return {**self.results, **ADDED_TYPES}


def json_text(value: Any) -> str:
    """A value as JSON on one line. What JSON lacks becomes text: dates by ISO 8601, bytes by base64."""
    return json.dumps(value, ensure_ascii=False, default=plain_value)


def plain_value(value: Any) -> Any:
    """What JSON lacks, as text: dates by ISO 8601, bytes by base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


class Table(abc.ABC):
    """Rows of one set of columns, which is declared by the inputs or taken from the first rows.

    Subclasses say how a table begins and how a row is added to it.

    Args:
        layout: what is known of the columns.
    """

    def __init__(self, layout: OutputSchema) -> None:
        self.layout = layout
        self.columns: list[str] | None = None
        self._waiting: list[Mapping[str, Any]] = []
        if layout.names is not None:
            self._begin(list(layout.names.values()))

    @abc.abstractmethod
    def begin(self, columns: Sequence[str], first: Sequence[Mapping[str, Any]]) -> None:
        """Start a table of these columns; `first` rows may tell their types."""

    @abc.abstractmethod
    def add(self, row: dict[str, Any]) -> str | None:
        """Add a row that has every column; a reason why a value of it could not be kept, or None."""

    def _begin(self, input_columns: Sequence[str]) -> None:
        self.columns = [*input_columns, *self.layout.all_results]
        self.begin(self.columns, self._waiting)
        for record in self._waiting:
            self._add(record)
        self._waiting = []

    def _begin_from_waiting(self) -> None:
        results = self.layout.all_results
        self._begin(list(dict.fromkeys(name for row in self._waiting for name in row if name not in results)))

    def write(self, record: Mapping[str, Any]) -> str | None:
        if self.columns is not None:
            return self._add(record)
        self._waiting.append(record)
        if len(self._waiting) >= FIRST_ROWS:
            self._begin_from_waiting()
        return None

    def _add(self, record: Mapping[str, Any]) -> str | None:
        assert self.columns is not None
        row = dict.fromkeys(self.columns) | {TRUNCATED: False} | dict(record)
        new = [name for name in record if name not in self.columns]
        for name in new:
            del row[name]
        problem = f"the field {new[0]!r} is not among the columns, which the first rows decide" if new else None
        if problem:
            row[ERROR] = row[ERROR] or problem
        return self.add(row) or problem

    def finish(self) -> None:
        """Write buffered rows."""
        if self.columns is None:
            self._begin_from_waiting()
