"""Rows in parts of a fixed number: those that are finished are read again, the others computed and kept."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import IO, NamedTuple, TypeVar

from ...errors import JobError
from ..formats.tables import plain_value
from ..results.result_columns import RowResults
from ..rows import InputRow
from .work_folder import Part, WorkFolder

T = TypeVar("T")

PART_ROWS = 8192
"""Rows of a part: what a killed job computes again at most. It holds the engine's largest window of prompts twice."""


class Answered(NamedTuple):
    """A row with its results."""

    row: InputRow
    results: RowResults


def in_parts(
    rows: Iterator[InputRow],
    compute: Callable[[Iterator[InputRow]], Iterable[Answered]],
    work: WorkFolder | None,
    size: int | None = None,
    *,
    ahead: int = 0,
) -> Generator[Answered, None, None]:
    """All rows in their order with their results; `keeping` keeps them.

    Args:
        compute: gives the results of the rows of one part; they depend on no other part, so that they are the same
            wherever the job was interrupted.
        work: where finished parts are; None has none.
        size: the rows of a part; PART_ROWS where it is None.
        ahead: parts that `compute` has begun beyond the one whose results are awaited; their rows are held.

    Raises:
        JobError: a finished part was made of other rows.
    """
    begun: deque[Iterable[Answered]] = deque()
    for index, part in _parts(rows, size):
        part = iter(list(part)) if ahead else part
        finished = None if work is None else work.part(index)
        first = index * (size or PART_ROWS) + 1
        begun.append(compute(part) if finished is None else _again(part, *finished, first))
        if len(begun) > ahead:
            yield from begun.popleft()
    while begun:
        yield from begun.popleft()


def keeping(answers: Iterator[Answered], work: WorkFolder, size: int | None = None) -> Iterator[Answered]:
    """The rows of `in_parts`, of which each part is kept once it is whole."""
    for index, part in _parts(answers, size):
        if index in work:
            yield from part
            continue
        with work.new_part() as file:
            inputs = hashlib.sha256()
            for each in part:
                inputs.update(_bytes_of(each.row))
                file.write(json.dumps(each.results).encode() + b"\n")
                yield each
            work.keep_part(index, file, inputs.hexdigest())


def _parts(items: Iterator[T], size: int | None) -> Iterator[tuple[int, Iterator[T]]]:
    """The items in parts; each must be used up before the next is asked for."""
    for index in itertools.count():
        part = itertools.islice(items, size or PART_ROWS)
        first = next(part, None)
        if first is None:
            return
        yield index, itertools.chain([first], part)


def _again(rows: Iterator[InputRow], part: Part, file: IO[bytes], first: int) -> Iterator[Answered]:
    other = (
        f"rows {first:,} to {first + part.rows - 1:,} of the inputs are not those that {part.name} was made of; "
        "--restart begins anew."
    )
    inputs = hashlib.sha256()
    with file:
        for row, line in itertools.zip_longest(rows, file):
            if row is None or line is None:
                raise JobError(other)
            inputs.update(_bytes_of(row))
            yield Answered(row, RowResults(*json.loads(line)))
    if not inputs.hexdigest().startswith(part.inputs):
        raise JobError(other)


def _bytes_of(row: InputRow) -> bytes:
    """A row, to be compared with the one that comes in its place the next time."""
    return json.dumps(row.fields, default=plain_value).encode()
