"""Rows in parts of a fixed number: those that are finished are read again, the others computed and kept."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from ...errors import JobError
from ..results import RowResults
from ..rows import InputRow
from .work_folder import WorkFolder

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
    work: WorkFolder,
    size: int | None = None,
) -> Generator[Answered, None, None]:
    """All rows in their order with their results; `keeping` keeps them.

    Args:
        compute: gives the results of the rows of one part; they depend on no other part, so that they are the same
            wherever the job was interrupted.
        work: where finished parts are.
        size: the rows of a part; PART_ROWS where it is None.
    """
    for index, part in _parts(rows, size):
        finished = work.part(index)
        yield from compute(part) if finished is None else _again(part, finished)


def keeping(answers: Iterator[Answered], work: WorkFolder, size: int | None = None) -> Iterator[Answered]:
    """The rows of `in_parts`, of which each part is kept once it is whole."""
    for index, part in _parts(answers, size):
        if work.part(index) is not None:
            yield from part
            continue
        with work.new_part(index) as file:
            for each in part:
                file.write(json.dumps(each.results).encode() + b"\n")
                yield each


def _parts(items: Iterator[T], size: int | None) -> Iterator[tuple[int, Iterator[T]]]:
    """The items in parts; each must be used up before the next is asked for."""
    for index in itertools.count():
        part = itertools.islice(items, size or PART_ROWS)
        first = next(part, None)
        if first is None:
            return
        yield index, itertools.chain([first], part)


def _again(rows: Iterator[InputRow], part: Path) -> Iterator[Answered]:
    with open(part, "rb") as file:
        for row, line in itertools.zip_longest(rows, file):
            if row is None or line is None:
                raise JobError(f"the inputs have other rows than {part} was made of; --restart begins anew.")
            yield Answered(row, RowResults(*json.loads(line)))
