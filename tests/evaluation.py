"""The metrics of predictions, all at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vllm_cls.evaluation import ClassificationMetrics, Tally


def evaluate(
    probs: Iterable[Sequence[float]],
    gold: Iterable[Any],
    id2label: Mapping[int, str],
    *,
    problem_type: str | None = None,
    threshold: float = 0.5,
) -> ClassificationMetrics:
    """See `Tally` for the arguments."""
    tally = Tally(id2label, problem_type, threshold=threshold)
    for row, label in zip(probs, gold, strict=True):
        tally.add(row, label)
    return tally.metrics()
