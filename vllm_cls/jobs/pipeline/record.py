"""Rows with their results are written, counted and measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import JobError
from ..formats.writers import Writer
from ..plan import Plan
from ..report.job_report import JobReport, notes_of
from ..results.result_columns import ERROR, TRUNCATED, KeptFields, RowResults
from ..resume.parts import Answered
from ..resume.work_folder import WorkFolder
from ..rows import InputRow


class Recorder:
    """Writes rows, and says in a report what became of them.

    Args:
        most_errors: the job ends when more rows than this fail.
        work: what is kept then.
        page: where an HTML file with pictures goes, or None.
    """

    def __init__(
        self,
        plan: Plan,
        kept: KeptFields,
        report: JobReport,
        most_errors: float,
        work: WorkFolder | None,
        page: Path | None = None,
    ) -> None:
        self._plan, self._kept, self._report, self._work = plan, kept, report, work
        self._most_errors = most_errors
        self._page = page
        self._tally = plan.tally(page is not None)
        self._labelled = False

    def record_all(self, answers: Iterator[Answered], writer: Writer) -> None:
        """Write rows, count them, and compare them with their true labels.

        Raises:
            JobError: too many rows have failed.
        """
        for row, results in answers:
            self._record(row, results, writer)

    def _record(self, row: InputRow, results: RowResults, writer: Writer) -> None:
        self._write(row, results, writer)
        if self._report.failed > self._most_errors:
            kept = "" if self._work is None else self._work.hint
            raise JobError(f"more than {self._most_errors} rows failed: {self._report.failures[-1].rstrip('.')}.{kept}")
        label_field = self._plan.options.label_field
        if self._tally is not None and label_field is not None and results.measured is not None:
            self._labelled = self._labelled or label_field in row.fields
            self._tally.add(results.measured, row.fields.get(label_field), row)

    def _write(self, row: InputRow, results: RowResults, writer: Writer) -> None:
        report = self._report
        report.rows += 1
        found = results.columns or self._plan.columns.empty()
        record = {**self._kept.output_fields(row.fields), **found}
        if results.truncated:
            record[TRUNCATED] = True
            report.truncated += 1
        if results.error is not None:
            record[ERROR] = results.error
        problem = writer.write(record)
        if results.error is not None or problem is not None:
            report.fail(row.place, results.error or problem or "")

    def conclude(self) -> None:
        """Add the metrics, and what is to be said of the whole job."""
        report, label_field = self._report, self._plan.options.label_field
        report.metrics = None if self._tally is None else self._tally.metrics()
        report.notes += notes_of(self._kept, report, self._plan.shape)
        if report.metrics is not None and report.metrics.unknown and not self._labelled:
            report.notes.append(f"no row has the field {label_field!r}, which was to be measured against")
        if self._page is not None and self._tally is not None and report.metrics is not None:
            from ..report.html_page import write_report

            write_report(self._page, report, report.metrics, self._tally.observed)
