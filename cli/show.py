"""Formatting for terminals and pipes: metrics, tables, numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vllm_cls.evaluation import ClassificationMetrics
    from vllm_cls.jobs.report.stats import JobStats

_MOST_LABELS = 12  # of a confusion matrix that is shown whole
_COMMONEST = 10
_NAMES = {
    "rows": "rows",
    "accuracy": "accuracy",
    "majority": "commonest label always",
    "macro_f1": "macro F1",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
    "mse": "mean squared error",
    "baseline_mse": "that of the mean always",
    "mae": "mean absolute error",
    "r2": "R²",
}


def measurements(values: Mapping[str, Any]) -> str:
    """`accuracy 0.951 (commonest label always 0.586), macro F1 0.950` of what there is, in our order."""
    parts: list[str] = []
    for name in [*_NAMES, *(name for name in values if name not in _NAMES)]:
        value = values.get(name)
        if value is None:
            continue
        text = f"{_NAMES.get(name, name.replace('_', ' '))} {number(value)}"
        if name in ("majority", "baseline_mse") and parts:  # beside what it is the baseline of
            parts[-1] += f" ({text})"
        else:
            parts.append(text)
    return ", ".join(parts)


def number(value: Any) -> str:
    """A number as one reads it: four digits of a fraction, thousands apart."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if 0.001 <= abs(value) < 1000 else f"{value:.4g}"


def size(num_bytes: int) -> str:
    """Bytes in the unit that suits them, of 1000."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def show_stats(console: Console, stats: JobStats, noun: str = "rows") -> None:
    """Where the time of a job went; what is unknown of a server's model is left out."""
    line = f"{stats.rows_per_second:,.1f} {noun}/s"
    if stats.forwards:
        line += (
            f", {stats.tokens_per_second:,.0f} tokens/s, {stats.forwards:,} forwards, the device busy {stats.busy:.1%}"
        )
    console.print(f"{line}; {stats.execution}" if stats.execution else line, markup=False, soft_wrap=True)
    steps = ("reading", "tokenizing", "planning", "computing", "answering", "writing", "waiting")
    of_the_model = steps[1:5]
    rows = [
        (step, f"{getattr(stats, step):.2f}", f"{getattr(stats, step) / stats.seconds:.1%}")
        for step in steps
        if stats.seconds and (stats.forwards or step not in of_the_model)
    ]
    show_table(console, ("step (they overlap)", "seconds", "of the whole"), rows)


def show_metrics(console: Console, metrics: ClassificationMetrics) -> None:
    """The measurements in a line, then each label, then which labels are taken for which."""
    console.print(measurements(_summary(metrics)), markup=False, soft_wrap=True)
    if metrics.per_label:
        rows = [
            (each.label, f"{each.precision:.3f}", f"{each.recall:.3f}", f"{each.f1:.3f}", f"{each.support:,}")
            for each in metrics.per_label
        ]
        show_table(console, ("label", "precision", "recall", "F1", "rows"), rows)
    if metrics.confusion is not None:
        _show_confusion(console, [each.label for each in metrics.per_label], metrics.confusion)


def _summary(metrics: ClassificationMetrics) -> dict[str, Any]:
    return {name: getattr(metrics, name) for name in _NAMES}


def _show_confusion(console: Console, labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> None:
    if len(labels) <= _MOST_LABELS:
        rows = [(label, *(f"{count:,}" for count in counts)) for label, counts in zip(labels, confusion, strict=True)]
        show_table(console, ("true \\ predicted", *labels), rows)
        return
    wrong = [
        (count, labels[true], labels[predicted])
        for true, counts in enumerate(confusion)
        for predicted, count in enumerate(counts)
        if count and true != predicted
    ]
    commonest = sorted(wrong, key=lambda each: -each[0])[:_COMMONEST]
    rows = [(true, predicted, f"{count:,}") for count, true, predicted in commonest]
    show_table(console, ("true", "predicted", "rows"), rows, left=2)


def show_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """A table without frames; the first `left` columns are texts, the others numbers. In a pipe, a row is a line."""
    console.print()
    if console.is_terminal:
        console.print(_rich_table(columns, rows, left))
        return
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        console.print("  ".join(cells).rstrip(), markup=False, soft_wrap=True)


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, name in enumerate(columns):
        table.add_column(Text(name), justify="left" if place < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
