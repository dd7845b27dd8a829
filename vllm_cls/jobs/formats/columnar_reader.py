"""Parquet and Arrow (its file and its stream format) through pyarrow, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import JobError
from ..rows import InputRow
from .files import COLUMNAR, InputFile
from .locations import random_access

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 1000
_MAGIC = b"ARROW1"  # of Arrow's file format


class _Table(NamedTuple):
    """A file that is open.

    Args:
        schema: of the file itself.
        batches: its record batches, read as they are asked for, each with the share of the file that ends with it.
        num_rows: where the file says it.
    """

    schema: pyarrow.Schema
    batches: Iterable[tuple[pyarrow.RecordBatch, float]]
    num_rows: int | None = None


class FarTime(str):
    """A time that Python has none for, as text; it keeps what Arrow has, and so can be written as that.

    Args:
        text: what it reads.
        number: since 1970, as Arrow counts.
        kind: the type in Arrow.
    """

    number: int
    kind: pyarrow.DataType

    def __new__(cls, text: str, number: int, kind: pyarrow.DataType) -> FarTime:
        found = super().__new__(cls, text)
        found.number, found.kind = number, kind
        return found

    def __getnewargs__(self) -> tuple[Any, ...]:
        return str(self), self.number, self.kind


def read_columnar(source: InputFile) -> Iterator[InputRow]:
    """The rows of a Parquet or Arrow file, with the columns of its folders.

    Raises:
        JobError: the file is not of its format, or is damaged.
    """
    folders, size = dict(source.partitions), source.size or 0
    number, before = 0, 0.0
    with _opened(source) as table:
        for large, done in table.batches:
            for start in range(0, large.num_rows, BATCH_ROWS):
                batch = large.slice(start, BATCH_ROWS)
                names = batch.schema.names
                errors: dict[int, str] = {}
                columns = [_values(name, column, errors) for name, column in zip(names, batch.columns, strict=True)]
                used = int(size * (before + (done - before) * (start + batch.num_rows) / large.num_rows))
                for index, cells in enumerate(zip(*columns, strict=True)):
                    number += 1
                    yield InputRow(dict(zip(names, cells, strict=True)) | folders, number, used, errors.get(index))
            before = done


def num_rows(source: InputFile) -> int | None:
    """How many rows a file says that it has; None where it does not say, as Arrow's."""
    with _opened(source) as table:
        return table.num_rows


def schema_of(source: InputFile) -> pyarrow.Schema:
    """The columns of a file and of its folders, with their types.

    Raises:
        JobError: the file is not of its format, or has a column twice.
    """
    import pyarrow

    with _opened(source) as table:
        schema = table.schema
    twice = [name for name in schema.names if schema.names.count(name) > 1]
    if twice:
        raise JobError(f"{source.name} has the column {twice[0]!r} twice; give each column a name of its own.")
    types = {int: pyarrow.int32(), str: pyarrow.string(), type(None): pyarrow.null()}
    folders = {name: types[type(value)] for name, value in source.partitions}
    return pyarrow.schema({field.name: field.type for field in schema} | folders)


def merged_schema(sources: Sequence[InputFile]) -> pyarrow.Schema | None:
    """The columns of all columnar sources with types that hold each one's values; None where there is no such source.

    Raises:
        JobError: a column has types that do not go together.
    """
    import pyarrow

    schemas = [schema_of(source) for source in sources if source.format in COLUMNAR]
    if not schemas:
        return None
    try:
        return pyarrow.unify_schemas(schemas, promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise JobError(f"the inputs do not go together: {error}. Classify them one by one.") from error


@contextmanager
def _opened(source: InputFile) -> Iterator[_Table]:
    import pyarrow

    try:
        with random_access(source.path) as file:
            yield _parquet(file) if source.format == "parquet" else _arrow(file)
    except (OSError, pyarrow.ArrowException) as error:
        text = " ".join(str(error).split()).rstrip(".")
        raise JobError(f"{source.name} cannot be read as {COLUMNAR[source.format]}: {text}.") from error


def _parquet(raw: Any) -> _Table:
    import pyarrow.parquet

    # a buffer, so that a row group of any size is read in pieces
    file = pyarrow.parquet.ParquetFile(raw, buffer_size=2**20)

    def batches() -> Iterator[tuple[pyarrow.RecordBatch, float]]:
        number = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            number += batch.num_rows
            yield batch, number / file.metadata.num_rows

    return _Table(file.schema_arrow, batches(), file.metadata.num_rows)


def _arrow(raw: Any) -> _Table:
    import pyarrow.ipc

    is_file = raw.read(len(_MAGIC)) == _MAGIC
    raw.seek(0)
    if not is_file:
        stream = pyarrow.ipc.open_stream(raw)
        return _Table(stream.schema, ((batch, raw.tell() / raw.size()) for batch in stream))
    file = pyarrow.ipc.open_file(raw)
    count = file.num_record_batches
    return _Table(file.schema, ((file.get_batch(index), (index + 1) / count) for index in range(count)))


def _values(name: str, column: pyarrow.Array, errors: dict[int, str]) -> list[Any]:
    """The values as Python has them; what it does not have, nanoseconds and far years, is kept to the last digit, as text.

    Args:
        errors: collects what is wrong with values, by their place.
    """
    import pyarrow

    whole = _with_nanoseconds_as(_microseconds, column.type)
    if whole != column.type:
        try:
            column = column.cast(whole)
        except pyarrow.ArrowInvalid:  # they would be lost
            column = column.cast(_with_nanoseconds_as(_in_utc, column.type)).cast(
                _with_nanoseconds_as(_text, column.type)
            )
    try:
        values: list[Any] = column.to_pylist()
        return values
    except (UnicodeDecodeError, OverflowError):
        return [_value(name, value, errors, index) for index, value in enumerate(column)]


def _value(name: str, value: pyarrow.Scalar, errors: dict[int, str], index: int) -> Any:
    """One value of a column that holds some which Python cannot have; `errors` as for `_values`."""
    import pyarrow

    try:
        return value.as_py()
    except UnicodeDecodeError:  # writers do not check their texts
        errors[index] = f"invalid UTF-8 in the field {name!r}"
        return _with_replacements(value)
    except OverflowError:  # Python's times are of the years 1 to 9999
        if isinstance(value, pyarrow.DictionaryScalar):
            return _value(name, value.value, errors, index)
        if not pyarrow.types.is_nested(value.type):
            return FarTime(value.cast(pyarrow.string()).as_py(), value.value, value.type)
        if isinstance(value, pyarrow.StructScalar):
            return {key: _value(name, each, errors, index) for key, each in value.items()}
        found = [_value(name, each, errors, index) for each in value.values]
        return [tuple(each.values()) for each in found] if isinstance(value, pyarrow.MapScalar) else found


def _with_replacements(value: pyarrow.Scalar) -> str | None:
    """A text with U+FFFD in place of wrong bytes; None in place of what holds such texts deeper down."""
    import pyarrow

    if not isinstance(value, pyarrow.StringScalar | pyarrow.LargeStringScalar):
        return None
    return bytes(value.as_buffer()).decode("utf-8", "replace")


def _with_nanoseconds_as(
    made: Callable[[pyarrow.DataType], pyarrow.DataType], kind: pyarrow.DataType
) -> pyarrow.DataType:
    """The type with others in place of those of nanoseconds, also in lists and structs."""
    import pyarrow as pa

    def inner(part: pa.DataType) -> pa.DataType:
        return _with_nanoseconds_as(made, part)

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return (pa.list_ if pa.types.is_list(kind) else pa.large_list)(kind.field(0).with_type(inner(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(inner(field.type)) for field in kind])
    return made(kind) if pa.types.is_temporal(kind) and getattr(kind, "unit", None) == "ns" else kind


def _microseconds(kind: pyarrow.DataType) -> pyarrow.DataType:
    import pyarrow as pa

    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us")


def _in_utc(kind: pyarrow.DataType) -> pyarrow.DataType:
    """A zone's own time is not exact as text: it wraps around at both ends, and of old offsets the seconds are left out."""
    import pyarrow as pa

    return pa.timestamp("ns", "UTC") if pa.types.is_timestamp(kind) and kind.tz is not None else kind


def _text(_: pyarrow.DataType) -> pyarrow.DataType:
    import pyarrow as pa

    return pa.string()
