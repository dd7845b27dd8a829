"""The pictures of a report, drawn by matplotlib as SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...errors import ConfigError
from ...evaluation import BINS
from .html_data import STEPS, ReportData

MOST_LABELS = 30
"""Of a confusion matrix that is drawn; of more, the labels that most rows have."""
_BLUE, _RED, _GREY, _GREEN = "#2f6fb7", "#c8443c", "#8a8f98", "#2b8a57"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "text.parse_math": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": _GREY, "axes.labelcolor": "#333",
    "xtick.color": "#555", "ytick.color": "#555", "axes.grid": True, "grid.color": "#e6e8eb", "axes.axisbelow": True,
    "legend.frameon": False,
}  # fmt: skip


def check_installed() -> None:
    """Raise `ConfigError` if matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError("a report is drawn by matplotlib: pip install 'vllm-cls[report]'.") from error


def confusion(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """How many rows of each true label got which; the colour is the share of the true label's rows."""
    import numpy as np

    matrix = np.array(counts, dtype=float)
    if len(labels) > MOST_LABELS:
        shown = np.sort(np.argsort(-(matrix.sum(0) + matrix.sum(1)), kind="stable")[:MOST_LABELS])
        matrix, labels = matrix[np.ix_(shown, shown)], [labels[index] for index in shown]
    sums = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, sums, out=np.zeros_like(matrix), where=sums > 0)
    edge = max(3.6, 0.42 * len(labels) + 1.8)
    names = [label if len(label) <= 24 else label[:23] + "…" for label in labels]
    with _axes("confusion", edge, edge) as (axes, svg):
        axes.grid(False)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="predicted", ylabel="true")
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[row, column] > 0.55 else "#222"
                axes.text(column, row, _short(int(count)), ha="center", va="center", color=colour, fontsize=8)
    return svg()


def reliability(data: ReportData) -> str:
    """How often the model is right where it says how sure it is."""
    used = [place for place in range(BINS) if data.bin_count[place]]
    sure = [data.bin_sum[place] / data.bin_count[place] for place in used]
    right = [data.bin_right[place] / data.bin_count[place] for place in used]
    most = max((data.bin_count[place] for place in used), default=1)
    sizes = [12 + 120 * data.bin_count[place] / most for place in used]
    with _axes("reliability", 4.2, 3.6) as (axes, svg):
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="calibrated")
        axes.plot(sure, right, color=_BLUE, linewidth=1.5)
        axes.scatter(sure, right, s=sizes, color=_BLUE, alpha=0.85, label="this model (size: rows)")
        axes.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1.02), ylim=(0, 1.05))
        axes.legend(loc="upper left")
    return svg()


def confidences(data: ReportData) -> str:
    """How sure the model is of what is right and of what is wrong."""
    return _histograms("confidences", "confidence", (data.right, "right", _GREEN), (data.wrong, "wrong", _RED))


def scores(data: ReportData) -> str:
    """The scores of what is true and of what is not."""
    names = ("the label is true", "it is not") if data.multi else (f"true: {data.labels[1]}", f"true: {data.labels[0]}")
    what = "probability of a label" if data.multi else f"probability of {data.labels[1]}"
    return _histograms("scores", what, (data.positives, names[0], _BLUE), (data.negatives, names[1], _GREY))


def _histograms(name: str, what: str, *series: tuple[Sequence[int], str, str]) -> str:
    coarse = STEPS // 8
    edges = [place / coarse for place in range(coarse + 1)]
    with _axes(name, 4.2, 3.6) as (axes, svg):
        for counts, label, colour in series:
            bars = [sum(counts[place * 8 : place * 8 + 8]) for place in range(coarse)]
            axes.stairs(bars, edges, fill=True, alpha=0.45, color=colour, label=_cut(label))
        axes.set(xlabel=_cut(what), ylabel="rows", xlim=(0, 1))
        axes.legend()
    return svg()


def threshold_curves(data: ReportData) -> str:
    """Precision, recall and F1 of the second label, or of all of a multi-label model's, by threshold."""
    edges = [place / STEPS for place in range(STEPS)]
    true = sum(data.positives)
    found = [sum(data.positives[place:]) for place in range(STEPS)]
    given = [found[place] + sum(data.negatives[place:]) for place in range(STEPS)]
    precision = [hits / all_ if all_ else float("nan") for hits, all_ in zip(found, given, strict=True)]
    recall = [hits / true if true else float("nan") for hits in found]
    f1 = [2 * hits / (all_ + true) if all_ + true else float("nan") for hits, all_ in zip(found, given, strict=True)]
    best = max(range(STEPS), key=lambda place: f1[place] if f1[place] == f1[place] else -1.0)
    with _axes("thresholds", 4.2, 3.6) as (axes, svg):
        for values, label, colour in ((precision, "precision", _BLUE), (recall, "recall", _GREEN), (f1, "F1", _RED)):
            axes.plot(edges, values, color=colour, linewidth=1.6, label=label)
        axes.axvline(edges[best], color=_GREY, linestyle="--", linewidth=1)
        axes.text(edges[best], 1.06, f"best F1 {f1[best]:.3f} at {edges[best]:.3f}", ha="center", fontsize=9)
        axes.set(xlabel="threshold", xlim=(0, 1), ylim=(0, 1.12))
        axes.legend(loc="lower left")
    return svg()


def scatter(data: ReportData) -> str:
    """Predicted numbers against true ones."""
    true, predicted = [point[0] for point in data.points], [point[1] for point in data.points]
    low, high = min(true + predicted, default=0.0), max(true + predicted, default=1.0)
    with _axes("scatter", 4.6, 4.2) as (axes, svg):
        axes.plot([low, high], [low, high], color=_GREY, linestyle="--", linewidth=1)
        axes.scatter(true, predicted, s=10, color=_BLUE, alpha=0.5, linewidths=0)
        axes.set(xlabel="true", ylabel="predicted")
    return svg()


@contextmanager
def _axes(name: str, width: float, height: float) -> Iterator[tuple[Any, Callable[[], str]]]:
    """Axes to draw on, and what gives the SVG once that is done; the same data is the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    drawn = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.subplots(), lambda: _inline(drawn.getvalue())
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def _inline(svg: str) -> str:
    """The element alone, as HTML takes it, with the size of its box."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'\b(width|height)="[\d.]+pt"', "", svg, count=2)


def _short(count: int) -> str:
    return f"{count:,}" if count < 10_000 else f"{count / 1000:,.0f}k" if count < 10_000_000 else f"{count / 1e6:,.0f}M"


def _cut(text: str) -> str:
    return text if len(text) <= 32 else text[:31] + "…"
