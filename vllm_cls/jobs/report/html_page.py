"""The report of a job as one HTML file that needs nothing else: no script, no network."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...compat.disk import replacing
from . import plots
from .html_data import Mistake, ReportData

if TYPE_CHECKING:
    from ...evaluation import ClassificationMetrics
    from .job_report import JobReport

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLES = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #22262b; background: #f5f6f8; margin: 0; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 2px; } h2 { font-size: 17px; margin: 0 0 4px; }
p { margin: 0 0 12px; color: #5a616b; }
section { background: #fff; border: 1px solid #e2e5e9; border-radius: 8px; padding: 18px 20px; margin-top: 18px;
  overflow-x: auto; }
.numbers { display: flex; flex-wrap: wrap; gap: 10px 34px; }
.numbers div { color: #5a616b; font-size: 13px; } .numbers b { display: block; font-size: 22px; color: #22262b;
  font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 18px; margin-top: 18px; }
.plots section { margin-top: 0; }
.plots section:last-child:nth-child(odd) { grid-column: 1 / -1; }
svg { display: block; width: 100%; height: auto; max-height: 420px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: #5a616b; font-size: 13px; } td, th { padding: 6px 14px 6px 0;
  border-bottom: 1px solid #eceef1; vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; } td.text { overflow-wrap: anywhere; white-space: pre-line; }
td.text small { display: block; color: #8a8f98; } img { max-height: 110px; border-radius: 4px; margin: 2px 6px 2px 0; }
"""


def write_report(path: Path, report: JobReport, metrics: ClassificationMetrics, data: ReportData) -> None:
    """Write the file; it is there whole or not at all."""
    with replacing(path) as temporary:
        Path(temporary).write_text("".join(_page(report, metrics, data)), encoding="utf-8")


def _page(report: JobReport, metrics: ClassificationMetrics, data: ReportData) -> Iterator[str]:
    title = f"Report of {Path(report.output).name}" if report.output else "Report"
    yield (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLES}</style></head><body><main>'
        f"<h1>{html.escape(title)}</h1><p>{report.rows:,} rows, {metrics.rows:,} with a known true label, "
        f"{report.failed:,} failed, {report.truncated:,} truncated</p>"
    )
    yield _numbers(metrics)
    if metrics.rows:
        yield '<div class="plots">'
        yield from _plots(metrics, data)
        yield "</div>"
        yield _per_label(metrics)
        yield _mistakes(data)
    yield "</main></body></html>\n"


def _numbers(metrics: ClassificationMetrics) -> str:
    named = {
        "accuracy": metrics.accuracy,
        "commonest label always": metrics.majority,
        "macro F1": metrics.macro_f1,
        "log loss": metrics.log_loss,
        "calibration error": metrics.calibration_error,
        "mean squared error": metrics.mse,
        "that of the mean always": metrics.baseline_mse,
        "mean absolute error": metrics.mae,
        "R²": metrics.r2,
    }
    shown = "".join(f"<div><b>{value:.4f}</b>{name}</div>" for name, value in named.items() if value is not None)
    return f'<section><div class="numbers">{shown or "No row has a true label that the model knows."}</div></section>'


def _plots(metrics: ClassificationMetrics, data: ReportData) -> Iterator[str]:
    if data.regression:
        yield _plot("Predicted against true", f"{len(data.points):,} of {data.rows:,} rows", plots.scatter(data))
        return
    if metrics.confusion is not None:
        shown = f"of {len(data.labels):,} labels, the {plots.MOST_LABELS} commonest; " * (
            len(data.labels) > plots.MOST_LABELS
        )
        matrix = plots.confusion(data.labels, metrics.confusion)
        yield _plot("Confusion matrix", f"rows; {shown}colour: share of the true label's", matrix)
    yield _plot("Reliability", "The share that is right, by how sure the model is", plots.reliability(data))
    yield _plot("Confidence", "Of answers that are right, and of those that are wrong", plots.confidences(data))
    if data.has_thresholds:
        yield _plot("Scores", "By the true label", plots.scores(data))
        of = "all labels together" if data.multi else data.labels[1]
        yield _plot("Thresholds", f"Precision, recall and F1 of {of}", plots.threshold_curves(data))


def _plot(title: str, text: str, svg: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{svg}</section>"


def _per_label(metrics: ClassificationMetrics) -> str:
    if not metrics.per_label:
        return ""
    rows = "".join(
        f'<tr><td class="text">{html.escape(each.label)}</td>'
        + "".join(f'<td class="number">{value:.3f}</td>' for value in (each.precision, each.recall, each.f1))
        + f'<td class="number">{each.support:,}</td></tr>'
        for each in metrics.per_label
    )
    return f"<section><h2>Labels</h2>{_table(('label',), ('precision', 'recall', 'F1', 'rows'), rows)}</section>"


def _mistakes(data: ReportData) -> str:
    """The worst rows with their texts and pictures."""
    if not data.mistakes:
        return ""
    title, size = ("Largest errors", "error") if data.regression else ("Most confident mistakes", "confidence")
    rows = "".join(_mistake(each) for each in data.mistakes)
    return f"<section><h2>{title}</h2>{_table(('row', 'true', 'predicted'), (size,), rows)}</section>"


def _mistake(each: Mistake) -> str:
    pictures = "".join(f'<img src="{uri}" alt="">' for uri in each.pictures)
    return (
        f'<tr><td class="text">{pictures}{html.escape(each.text)}<small>{html.escape(each.place)}</small></td>'
        f'<td class="text">{html.escape(each.true)}</td><td class="text">{html.escape(each.predicted)}</td>'
        f'<td class="number">{each.size:.4g}</td></tr>'
    )


def _table(texts: Sequence[str], numbers: Sequence[str], rows: str) -> str:
    head = "".join(f"<th>{name}</th>" for name in texts) + "".join(
        f'<th class="number">{name}</th>' for name in numbers
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
