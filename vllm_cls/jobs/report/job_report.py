"""What a job reports when it ends."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...parsing.labels import is_number
from ..results.result_columns import NO_PROBABILITIES, KeptFields, ResultColumns

if TYPE_CHECKING:
    from ...evaluation import ClassificationMetrics
    from .stats import JobStats

_SHOWN_FAILURES = 5
_MOST_CAUSES = 20
OTHER_CAUSES = "other reasons"
_DETAIL = re.compile("[:;] ")
_PLACE = re.compile(r"([a-z][\w.\[\]]*(?:, \w+)*)(?: \d+ of \d+)?: ")
_QUOTED = r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(?!\w)"""
_VALUE, _VALUE_SAID = re.compile(_QUOTED), re.compile(rf"(?:(?<=\bis )|(?<=\bgot )){_QUOTED}")
_NUMBER = re.compile(r"(?<![\w'-])-?\d[\d,.]*(?![\w'])")


@dataclass
class JobReport:
    """What a job did.

    Args:
        rows: rows read and written, bad ones included.
        failed: rows with an `error`.
        truncated: rows whose text was cut to the model's length.
        seconds: spent on the rows, without loading the model.
        metrics: what was measured against `label_field`, or None.
        output: the file that was written, or None for standard output.
        failures: the first few bad rows, each with its place and reason.
        causes: how many rows failed for which reason, numbers in it left out.
        notes: what the reader should know: fields renamed, fields that no row had.
        stats: where the time went.
    """

    rows: int = 0
    failed: int = 0
    truncated: int = 0
    seconds: float = 0.0
    metrics: ClassificationMetrics | None = None
    output: str | None = None
    failures: list[str] = field(default_factory=list)
    causes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stats: JobStats | None = field(default=None, compare=False)

    def fail(self, place: str, reason: str) -> None:
        """Count a bad row."""
        self.failed += 1
        if len(self.failures) < _SHOWN_FAILURES:
            self.failures.append(f"{place}: {reason}")
        cause = _cause(reason)
        if cause not in self.causes and len(self.causes) >= _MOST_CAUSES:
            cause = OTHER_CAUSES
        self.causes[cause] = self.causes.get(cause, 0) + 1


def _cause(reason: str) -> str:
    """What the reasons of many rows have in common: where it was, and what was wrong, without what is of one row alone.

    What is quoted about a place, such as an image, is a value; else it can be the name of a field.
    """
    place = _PLACE.match(reason)
    told = _VALUE.sub("…", reason[place.end() :]) if place else _VALUE_SAID.sub("…", reason)
    what = _DETAIL.split(told, maxsplit=1)[0].rstrip(".")
    return _NUMBER.sub("…", f"{place[1]}: {what}" if place else what)


def notes_of(kept: KeptFields, report: JobReport, shape: ResultColumns) -> list[str]:
    """What is to be said of a whole job."""
    notes = [
        f"the input's field {old!r} is kept as {new!r}, because {old!r} is a column of the results"
        for old, new in kept.renamed.items()
    ]
    if report.rows:
        notes += [f"no row has the field {name!r}, which was to be kept" for name in kept.never_seen]
    if shape.use_activation and not (shape.gives_probabilities or shape.regression or type(shape) is not ResultColumns):
        notes.append(f"rows have logits in place of probabilities: {NO_PROBABILITIES}")
    return notes if report.metrics is None else notes + _notes_of_labels(report.metrics, shape)


def _notes_of_labels(metrics: ClassificationMetrics, shape: ResultColumns) -> list[str]:
    """What is to be said of the true labels: how they were read, and which of them are none."""
    if not metrics.unknown:
        return metrics.notes
    told = f"{metrics.unknown} rows are not measured, because their true label is none of the model's: "
    told += ", ".join(metrics.unknown_labels)
    bare = {each: each.strip("' ") for each in metrics.unknown_labels}  # they are told with quotes
    names = {name.casefold(): name for name in shape.id2label.values()}
    near = [
        f"{each} differs from {names[text.casefold()]!r} in upper and lower case"
        for each, text in bare.items()
        if text.casefold() in names and text not in names.values()
    ]
    if not shape.regression and any(map(is_number, bare.values())):
        near.append(f"indices are 0 to {max(1, len(shape.id2label) - 1)}")
    return [*metrics.notes, told + (f" ({'; '.join(near)})" if near else "")]
