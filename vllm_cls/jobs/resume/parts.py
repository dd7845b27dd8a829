"""Rows in parts of a fixed number: those that are finished are read again, the others computed and kept."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ...errors import JobError
from ..results import RowResults
from ..rows import InputRow
from .work_folder import WorkFolder

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
    rows_of_a_part: int | None = None,
) -> Generator[Answered, None, None]:
    """All rows in their order with their results.

    Args:
        compute: gives the results of the rows of one part; they depend on no other part, so that they are the same
            wherever the job was interrupted.
        work: where finished parts are kept.
        rows_of_a_part: PART_ROWS where it is None.
    """
    for index in itertools.count():
        first = next(rows, None)
        if first is None:
            return
        part = itertools.chain([first], itertools.islice(rows, (rows_of_a_part or PART_ROWS) - 1))
        finished = work.part(index)
        if finished is not None:
            yield from _again(part, finished)
            continue
        with work.new_part(index) as file:
            for each in compute(part):
                file.write(json.dumps(each.results).encode() + b"\n")
                yield each


def _again(rows: Iterator[InputRow], part: Path) -> Iterator[Answered]:
    with open(part, "rb") as file:
        for row, line in itertools.zip_longest(rows, file):
            if row is None or line is None:
                raise JobError(f"the inputs have other rows than {part} was made of; --restart begins anew.")
            yield Answered(row, RowResults(*json.loads(line)))
