"""Writes Parquet and Arrow with a schema fixed before the first row: the inputs' types, else those of the first rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from typing_extensions import get_type_hints

from ..results.result_columns import ERROR
from .columnar_reader import FarTime, merged_schema
from .tables import OutputSchema, Table, json_text

GROUP_ROWS = 10_000
EXACT = 2**53
"""Integers up to here are numbers of a float64 column without loss."""

_SCALARS = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}


class Misfit(ValueError):
    """A value does not fit the type of its column."""


class ColumnarRows(Table):
    """Rows into a Parquet or Arrow file, a row group at a time.

    A value that does not fit its column is null there, and the row's `error` says so.

    Args:
        path: the file to make.
        kind: "parquet" or "arrow", which is Arrow's file format.
        layout: what is known of the columns.
    """

    def __init__(self, path: str, kind: str, layout: OutputSchema) -> None:
        self._path, self._new = path, {"parquet": pq.ParquetWriter, "arrow": pyarrow.ipc.new_file}[kind]
        self._file: Any = None
        self._group: list[dict[str, Any]] = []
        super().__init__(layout)

    def __enter__(self) -> ColumnarRows:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
                self._flush()
        finally:
            if self._file is not None:
                self._file.close()

    def begin(self, columns: Sequence[str], first: Sequence[Mapping[str, Any]]) -> None:
        names = self.layout.names or {}
        schema = merged_schema(self.layout.sources) if names else None
        declared = {names[column.name]: column.type for column in schema or () if column.name in names}
        types = {name: declared.get(name) or infer([row.get(name) for row in first]) for name in columns}
        types |= {name: arrow_type(kind) for name, kind in self.layout.all_results.items()}
        self._schema = pa.schema(list(types.items()))
        self._file = self._new(self._path, self._schema)

    def add(self, row: dict[str, Any]) -> str | None:
        problem = None
        for column in self._schema:
            try:
                row[column.name] = fitted(row[column.name], column.type)
            except Misfit as error:
                problem = problem or f"the field {column.name!r} is lost: {error}"
                row[column.name] = None
        if problem:
            row[ERROR] = row[ERROR] or problem
        self._group.append(row)
        if len(self._group) >= GROUP_ROWS:
            self._flush()
        return problem

    def _flush(self) -> None:
        if self._group and self._file is not None:
            columns = [pa.array([row[column.name] for row in self._group], column.type) for column in self._schema]
            self._file.write_batch(pa.record_batch(columns, schema=self._schema))
            self._group = []


def arrow_type(kind: Any) -> pa.DataType:
    """The Arrow type of a result column of the Python type `kind`; every column is nullable."""
    if kind in _SCALARS:
        return _SCALARS[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        (kind,) = (each for each in arguments if each is not NoneType)
        return arrow_type(kind)
    if origin is list:
        return pa.list_(arrow_type(arguments[0]))
    if origin is dict:
        return pa.map_(*map(arrow_type, arguments))
    return pa.struct([(name, arrow_type(each)) for name, each in get_type_hints(kind).items()])


def infer(values: Sequence[Any]) -> pa.DataType:
    """The type that holds all `values` without loss; string, for JSON text, where they have nothing in common."""
    kinds = {type(value) for value in values if value is not None}
    present = [value for value in values if value is not None]
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in present):
        return pa.int64()
    if kinds in ({float}, {int, float}) and all(abs(value) <= EXACT for value in present if isinstance(value, int)):
        return pa.float64()
    if kinds == {list}:
        return pa.list_(infer([each for value in present for each in value]))
    if kinds == {dict}:
        names = dict.fromkeys(name for value in present for name in value)
        if names:  # Parquet has no struct without fields
            return pa.struct([(name, infer([value.get(name) for value in present])) for name in names])
    if len(kinds) == 1 and not kinds & {str, int, dict}:  # dates, decimals, bytes: of another Parquet file
        try:
            return pa.infer_type(present)
        except pa.ArrowException:
            return pa.string()
    return pa.string()


def fitted(value: Any, kind: pa.DataType) -> Any:
    """`value` as a column of type `kind` takes it.

    Raises:
        Misfit: it cannot be stored there without loss.
    """
    if value is None:
        return None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        text = value if isinstance(value, str) else json_text(value)
        return text.encode("utf-8", "replace").decode()
    if pa.types.is_struct(kind):
        return _fitted_struct(value, kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if not isinstance(value, list):
            raise Misfit(f"{value!r} is not a list")
        if pa.types.is_fixed_size_list(kind) and len(value) != kind.list_size:
            raise Misfit(f"{value!r} is not a list of {kind.list_size}")
        return [fitted(each, kind.value_type) for each in value]
    if pa.types.is_map(kind):
        pairs = value.items() if isinstance(value, dict) else value
        return [(fitted(key, kind.key_type), fitted(each, kind.item_type)) for key, each in pairs]
    if kind == pa.float64() and isinstance(value, float):
        return value
    if isinstance(value, bool) != pa.types.is_boolean(kind):
        raise Misfit(f"{value!r} is not of the type {kind}")
    too_exact = isinstance(value, int) and pa.types.is_floating(kind) and abs(value) > EXACT
    if too_exact or (isinstance(value, float) and pa.types.is_integer(kind)):
        raise Misfit(f"{value!r} is not of the type {kind}")
    return _fitted_scalar(value, kind)


def _fitted_struct(value: Any, kind: pa.StructType) -> dict[str, Any]:
    names = {field.name for field in kind}
    if not isinstance(value, dict) or not names.issuperset(value):
        raise Misfit(f"{value!r} has other fields than {', '.join(sorted(names))}")
    return {field.name: fitted(value.get(field.name), field.type) for field in kind}


def _fitted_scalar(value: Any, kind: pa.DataType) -> Any:
    try:
        if pa.types.is_temporal(kind) and isinstance(value, str):
            return _from_text(value, kind) if not isinstance(value, FarTime) else _far(value).cast(kind)
        pa.scalar(value, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise Misfit(f"{value!r} is not of the type {kind}") from error
    return value


def _far(value: FarTime) -> pa.Scalar:
    return pa.scalar(value.number, value.kind)


def _from_text(text: str, kind: pa.DataType) -> pa.Scalar:
    """What the Parquet reader made a text of, because Python has no nanoseconds."""
    if pa.types.is_duration(kind):
        return pa.scalar(int(text), kind)
    if pa.types.is_time(kind):  # pyarrow parses no time without a day
        return pa.scalar(f"1970-01-01 {text}").cast(pa.timestamp("ns")).cast(kind)
    return pa.scalar(text).cast(kind)
