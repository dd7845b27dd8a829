"""The steps of a job at once: rows are read ahead, answered part by part, and written behind."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing

from ..columns import KnownColumns
from ..formats.files import OutputFile
from ..formats.readers import read_rows
from ..options import RunOptions
from ..overlap import Channel, ahead, at_once, behind
from ..report.job_report import JobReport
from ..report.progress import JobProgress
from ..report.stats import stats_of
from ..resume.parts import Answered, in_parts, keeping
from ..resume.work_folder import WorkFolder
from ..rows import InputRow
from .answers import PartWorker
from .output import open_output
from .record import Contents, Recorder

MOST_WAITING = 4096
"""Rows between two steps at most; a large one counts as many. It is the engine's largest window of prompts."""
_BYTES_OF_A_ROW = 4096


def run_rows(
    worker: PartWorker,
    contents: Contents,
    known: KnownColumns,
    target: OutputFile,
    work: WorkFolder | None,
    how: RunOptions,
) -> JobReport:
    """Read, answer, write, report.

    The thread that calls this computes, so that Ctrl-C ends it at once.
    """
    sources, size = known.sources, how.rows_of_a_part
    report = JobReport(output=target.name)
    recorder = Recorder(contents, report, how.most_errors, work)
    if work is not None and work.rows:
        report.notes.append(f"{work.rows:,} {contents.noun} that an earlier run has finished are not run again")
    waited_for = any(source.size is None for source in sources)
    read, written = Channel(MOST_WAITING, _weight), Channel(MOST_WAITING, _weight_of_answered)
    before, began = worker.counters, time.perf_counter()
    with (
        open_output(target, contents.schema(known), work) as writer,
        (at_once if waited_for else ahead)(read_rows(sources, report.notes), read) as rows,
        closing(_answers(worker, rows, work, size)) as answers,
        behind(lambda each: recorder.record_all(_kept(each, work, size), writer), written) as write,
    ):
        told = JobProgress(total=known.num_rows, counters=lambda: worker.counters)
        if how.on_progress is not None:
            how.on_progress(told)
        for answered in answers:
            write(answered)
            if how.on_progress is not None:
                told = told.with_row(answered)
                how.on_progress(told)
    report.seconds = time.perf_counter() - began
    computed = None if before is None or worker.counters is None else worker.counters - before
    report.stats = stats_of(report.rows, report.seconds, read, written, computed, worker.description())
    contents.conclude(report)
    return report


def _answers(
    worker: PartWorker, rows: Iterator[InputRow], work: WorkFolder | None, size: int | None
) -> Generator[Answered, None, None]:
    if work is None and not worker.ahead:
        return worker.compute(rows)
    return in_parts(rows, worker.compute, work, size, ahead=worker.ahead)


def _kept(answers: Iterator[Answered], work: WorkFolder | None, size: int | None) -> Iterator[Answered]:
    return answers if work is None else keeping(answers, work, size)


def _weight(row: InputRow) -> int:
    """How many rows one counts for, by what it holds."""
    held = sum(len(value) for value in row.fields.values() if isinstance(value, str | bytes))
    return 1 + held // _BYTES_OF_A_ROW


def _weight_of_answered(answered: Answered) -> int:
    return _weight(answered.row)
