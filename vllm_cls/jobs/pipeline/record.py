"""Rows with their results are written, counted and measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import JobError
from ..columns import KnownColumns
from ..formats.tables import OutputSchema
from ..formats.writers import Writer
from ..plan import Plan
from ..report.job_report import JobReport, notes_of
from ..results.result_columns import ADDED_TYPES, ERROR, TRUNCATED, KeptFields, RowResults
from ..resume.parts import Answered
from ..resume.work_folder import WorkFolder
from ..rows import InputRow


class Contents:
    """What the rows of an output hold: of this class, their results and nothing beside.

    Args:
        noun: what the rows are called.
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun

    def schema(self, known: KnownColumns) -> OutputSchema:
        """The columns of the output."""
        return OutputSchema(None, {}, known.sources)

    def record(self, row: InputRow, results: RowResults) -> dict[str, Any]:
        """What is written of a row."""
        return results.columns or {}

    def conclude(self, report: JobReport) -> None:
        """Add what is to be said of the whole job."""


class RowContents(Contents):
    """The kept fields of the inputs, then the results, which are compared with their true labels.

    Args:
        page: where an HTML file with pictures goes, or None.
    """

    def __init__(self, plan: Plan, page: Path | None = None) -> None:
        super().__init__("rows")
        self._plan, self._page = plan, page
        self._kept = KeptFields(plan.options.keep_fields, [*plan.columns.types, *ADDED_TYPES])
        self._tally = plan.tally(page is not None)
        self._labelled = False

    def schema(self, known: KnownColumns) -> OutputSchema:
        """As of `Contents`."""
        return OutputSchema(known.names_in(self._kept), self._plan.columns.types, known.sources)

    def record(self, row: InputRow, results: RowResults) -> dict[str, Any]:
        """As of `Contents`."""
        label_field = self._plan.options.label_field
        if self._tally is not None and label_field is not None and results.measured is not None:
            self._labelled = self._labelled or label_field in row.fields
            self._tally.add(results.measured, row.fields.get(label_field), row)
        found = {**self._kept.output_fields(row.fields), **(results.columns or self._plan.columns.empty())}
        if results.truncated:
            found[TRUNCATED] = True
        if results.error is not None:
            found[ERROR] = results.error
        return found

    def conclude(self, report: JobReport) -> None:
        """Add the metrics, and what is to be said of the whole job."""
        label_field = self._plan.options.label_field
        report.metrics = None if self._tally is None else self._tally.metrics()
        report.notes += notes_of(self._kept, report, self._plan.shape)
        if report.metrics is not None and report.metrics.unknown and not self._labelled:
            report.notes.append(f"no row has the field {label_field!r}, which was to be measured against")
        if self._page is not None and self._tally is not None and report.metrics is not None:
            from ..report.html_page import write_report

            write_report(self._page, report, report.metrics, self._tally.observed)


class Recorder:
    """Writes rows, and says in a report what became of them.

    Args:
        most_errors: the job ends when more rows than this fail.
        work: what is kept then.
    """

    def __init__(self, contents: Contents, report: JobReport, most_errors: float, work: WorkFolder | None) -> None:
        self._contents, self._report, self._most_errors, self._work = contents, report, most_errors, work

    def record_all(self, answers: Iterator[Answered], writer: Writer) -> None:
        """Write rows and count them.

        Raises:
            JobError: too many rows have failed.
        """
        for row, results in answers:
            self._record(row, results, writer)

    def _record(self, row: InputRow, results: RowResults, writer: Writer) -> None:
        report = self._report
        report.rows += 1
        report.truncated += results.truncated
        problem = writer.write(self._contents.record(row, results))
        if results.error is not None or problem is not None:
            report.fail(row.place, results.error or problem or "")
        if report.failed > self._most_errors:
            kept = "" if self._work is None else self._work.hint
            first = report.failures[-1].rstrip(".")
            raise JobError(f"more than {self._most_errors} {self._contents.noun} failed: {first}.{kept}")
