"""Parquet through pyarrow, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...errors import JobError
from ..rows import InputRow
from .files import InputFile

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 1000


def read_parquet(source: InputFile) -> Iterator[InputRow]:
    """The rows of a Parquet file.

    Raises:
        JobError: the file is not Parquet, or is damaged.
    """
    with _opened(source) as file:
        total = max(1, file.metadata.num_rows)
        number = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            names = batch.schema.names
            columns = [_values(column) for column in batch.columns]
            for cells in zip(*columns, strict=True):
                number += 1
                yield InputRow(dict(zip(names, cells, strict=True)), number, (source.size or 0) * number // total)


def num_rows(source: InputFile) -> int:
    """How many rows a Parquet file says that it has."""
    with _opened(source) as file:
        return int(file.metadata.num_rows)


def schema_of(source: InputFile) -> pyarrow.Schema:
    """The columns of a Parquet file with their types.

    Raises:
        JobError: the file is not Parquet, or has a column twice.
    """
    with _opened(source) as file:
        schema = file.schema_arrow
    twice = [name for name in schema.names if schema.names.count(name) > 1]
    if twice:
        raise JobError(f"{source.name} has the column {twice[0]!r} twice; give each column a name of its own.")
    return schema


def merged_schema(sources: Sequence[InputFile]) -> pyarrow.Schema | None:
    """The columns of all Parquet sources with types that hold each one's values; None where there is no such source.

    Raises:
        JobError: a column has types that do not go together.
    """
    import pyarrow

    schemas = [schema_of(source).remove_metadata() for source in sources if source.format == "parquet"]
    if not schemas:
        return None
    try:
        return pyarrow.unify_schemas(schemas, promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise JobError(f"the Parquet inputs do not go together: {error}. Classify them one by one.") from error


@contextmanager
def _opened(source: InputFile) -> Iterator[Any]:
    import pyarrow.parquet

    try:
        # a buffer, so that a row group of any size is read in pieces
        with pyarrow.parquet.ParquetFile(source.path, buffer_size=2**20) as file:
            yield file
    except (OSError, pyarrow.ArrowException) as error:
        raise JobError(f"{source.name} cannot be read as Parquet: {str(error).rstrip('.')}.") from error


def _values(column: pyarrow.Array) -> list[Any]:
    import pyarrow

    values: list[Any]
    try:
        values = column.to_pylist()
    except ValueError:  # nanoseconds, which Python's datetime does not hold: kept to the last digit, as text
        values = column.cast(pyarrow.string()).to_pylist()
    return values
