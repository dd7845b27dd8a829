"""Metrics of predictions against true labels, accumulated row by row in constant memory.

It imports nothing heavy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .parsing.labels import Gold, label_column

BINS = 15
_LEAST = 1e-15  # a probability of 0 for the true label costs this much, not everything
_SHOWN = 5
_MOST_SETS = 10_000  # different sets of labels that are counted, to find the commonest


@dataclass(frozen=True)
class LabelMetrics:
    """Precision, recall and F1 of one label; `support` is how many rows have it."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class ClassificationMetrics:
    """The metrics; a number is None where it has no meaning for the problem type, or without rows.

    Args:
        rows: rows that count.
        unknown: rows left out because their true label is missing, or none of the model's.
        unknown_labels: the first few of these, as they are written.
        notes: messages on how the true labels were read.
        accuracy: share of rows that are right; for multi-label, with exactly the right labels.
        macro_f1: mean F1 over the labels that occur or are predicted.
        log_loss: mean of −ln(probability of the true label), in nats; for multi-label, over all labels too.
        calibration_error: expected calibration error over 15 equal bins of confidence.
        majority: accuracy of always answering the commonest label (for multi-label, set of labels) of these rows.
        confusion: `confusion[i][j]` rows have label i and got label j, in the order of `per_label`.
        mse: mean squared error.
        mae: mean absolute error.
        r2: share of the variance that is explained.
        baseline_mse: mean squared error of always answering the mean of these rows.
    """

    rows: int
    unknown: int = 0
    unknown_labels: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    accuracy: float | None = None
    macro_f1: float | None = None
    log_loss: float | None = None
    calibration_error: float | None = None
    majority: float | None = None
    majority_label: str | None = None
    per_label: list[LabelMetrics] = field(default_factory=list)
    confusion: list[list[int]] | None = None
    mse: float | None = None
    mae: float | None = None
    r2: float | None = None
    baseline_mse: float | None = None


class Tally:
    """Counts of predictions against the true labels of a file: `add` rows, then `metrics`.

    Args:
        id2label: the model's labels. One label alone (a sigmoid) counts as two, "0" and "1", split at 0.5.
        problem_type: as in transformers; None is single-label.
        threshold: probability from which a multi-label model gives a label.
        observe: makes what sees rows beside the counts: `add(probs, gold, row)` is called with each whose label is known.
    """

    def __init__(
        self,
        id2label: Mapping[int, str],
        problem_type: str | None = None,
        *,
        threshold: float = 0.5,
        observe: Callable[[Sequence[str]], Any] | None = None,
    ) -> None:
        names = [id2label[i] for i in range(len(id2label))]
        self._column = label_column(names, problem_type)
        self._interpretations = [
            Counts(names, problem_type, threshold=threshold) for _ in range(self._column.interpretations)
        ]
        # a column can be read in several ways until its end, and each has its own
        self._observers = [None if observe is None else observe(each.labels) for each in self._interpretations]

    def add(self, probs: Sequence[float], gold: Any, row: Any = None) -> bool:
        """Count one row.

        Args:
            probs: the model's probabilities, in the order of the labels' indices; of a regression, its value.
            gold: the true label, a name or an index; for multi-label a list of them, or a 0 or 1 for each label; a number
                for regression.
            row: for `observe`.

        Returns:
            Whether the true label is known; a row whose label is not is counted as unknown only.
        """
        golds = self._column.add(gold)
        for counts, observer, each in zip(self._interpretations, self._observers, golds, strict=True):
            if each is None:
                counts.miss(gold)
                continue
            counts.add(probs, each)
            if observer is not None:
                observer.add(probs, each, row)
        return golds[self._column.chosen] is not None

    @property
    def observed(self) -> Any:
        """What `observe` made, for the way in which the column is read after all."""
        return self._observers[self._column.chosen]

    def metrics(self) -> ClassificationMetrics:
        """What was measured so far."""
        return replace(self._interpretations[self._column.chosen].metrics(), notes=self._column.notes())


def measured(
    probs: Iterable[Sequence[float]], gold: Iterable[Gold], names: Sequence[str], problem_type: str | None = None
) -> ClassificationMetrics:
    """The metrics of predictions against labels that are read already; see `Counts` for the arguments."""
    counts = Counts(names, problem_type)
    for row, label in zip(probs, gold, strict=True):
        counts.add(row, label)
    return counts.metrics()


def probabilities(logits: Sequence[float], problem_type: str | None) -> list[float]:
    """Softmax over the labels; a sigmoid where there is one, and of each for multi-label."""
    if problem_type == "multi_label_classification" or len(logits) == 1:
        return [
            1 / (1 + math.exp(-logit)) if logit > 0 else math.exp(logit) / (1 + math.exp(logit)) for logit in logits
        ]
    top = max(logits)
    shares = [math.exp(logit - top) for logit in logits]
    return [share / sum(shares) for share in shares]


class Counts:
    """Counts of predictions against true labels: `add` rows, then `metrics`.

    Args:
        names: of the labels. One label alone counts as two, "0" and "1".
        problem_type: as in transformers; None is single-label.
        threshold: probability from which a multi-label model gives a label.
    """

    def __init__(self, names: Sequence[str], problem_type: str | None = None, *, threshold: float = 0.5) -> None:
        self._multi = problem_type == "multi_label_classification"
        self._numbers = _Numbers() if problem_type == "regression" else None
        self._binary = len(names) == 1 and not self._multi
        self.labels = ["0", "1"] if self._binary else list(names)
        self._threshold = threshold
        self._rows = self._right = self._unknown = 0
        self._unknown_labels: list[str] = []
        self._loss = 0.0
        self._calibration = _Calibration()
        self._pairs: Counter[tuple[int, int]] = Counter()  # (true, predicted) of single-label rows
        self._true, self._predicted, self._both = Counter[int](), Counter[int](), Counter[int]()
        self._sets: Counter[frozenset[int]] = Counter()

    def add(self, probs: Sequence[float], gold: Gold) -> None:
        """Count one row.

        Args:
            probs: see `Tally.add`.
            gold: the index of its label, the set of those of a multi-label row, or a regression's number.
        """
        self._rows += 1
        if self._numbers is not None:
            self._numbers.add(probs[0], float(gold))  # type: ignore[arg-type]
        elif isinstance(gold, frozenset):
            self._add_multi(probs, gold)
        else:
            self._add_single([1 - probs[0], probs[0]] if self._binary else probs, int(gold))

    def miss(self, gold: Any) -> None:
        """Count a row whose true label is unknown."""
        self._unknown += 1
        if len(self._unknown_labels) < _SHOWN:
            shown = repr(gold) if len(repr(gold)) <= 40 else repr(gold)[:39] + "…"
            self._unknown_labels += [] if shown in self._unknown_labels else [shown]

    def metrics(self) -> ClassificationMetrics:
        """What was measured so far."""
        common: dict[str, Any] = {
            "rows": self._rows,
            "unknown": self._unknown,
            "unknown_labels": list(self._unknown_labels),
        }
        if self._numbers is not None or not self._rows:
            return ClassificationMetrics(**common, **(self._numbers.metrics() if self._numbers is not None else {}))
        per_label = [self._label_metrics(i) for i in range(len(self.labels))]
        f1_scores = [each.f1 for i, each in enumerate(per_label) if self._true[i] or self._predicted[i]]
        commonest, count = self._commonest()
        return ClassificationMetrics(
            **common,
            accuracy=self._right / self._rows,
            macro_f1=sum(f1_scores) / len(f1_scores) if f1_scores else None,
            log_loss=self._loss / self._rows,
            calibration_error=self._calibration.error(),
            majority=count / self._rows,
            majority_label=commonest,
            per_label=per_label,
            confusion=None if self._multi else self._confusion(),
        )

    def _add_single(self, probs: Sequence[float], gold: int) -> None:
        chosen = max(range(len(probs)), key=probs.__getitem__)
        self._pairs[gold, chosen] += 1
        self._true[gold] += 1
        self._predicted[chosen] += 1
        self._both[gold] += chosen == gold
        self._right += chosen == gold
        self._loss -= math.log(max(probs[gold], _LEAST))
        self._calibration.add(probs[chosen], chosen == gold)

    def _add_multi(self, probs: Sequence[float], gold: frozenset[int]) -> None:
        chosen = {i for i, prob in enumerate(probs) if prob >= self._threshold}
        self._true.update(gold)
        self._predicted.update(chosen)
        self._both.update(gold & chosen)
        self._right += chosen == gold
        if gold in self._sets or len(self._sets) < _MOST_SETS:
            self._sets[gold] += 1
        losses = [-math.log(max(prob if i in gold else 1 - prob, _LEAST)) for i, prob in enumerate(probs)]
        self._loss += sum(losses) / len(losses)
        for i, prob in enumerate(probs):
            self._calibration.add(max(prob, 1 - prob), (prob >= 0.5) == (i in gold))

    def _commonest(self) -> tuple[str, int]:
        """The label, or the labels, that most rows have, and how many do."""
        if self._multi:
            labels, count = self._sets.most_common(1)[0]
            return ", ".join(self.labels[i] for i in sorted(labels)), count
        best = max(range(len(self.labels)), key=lambda i: self._true[i])
        return self.labels[best], self._true[best]

    def _label_metrics(self, i: int) -> LabelMetrics:
        both, predicted, true = self._both[i], self._predicted[i], self._true[i]
        precision, recall = (both / predicted if predicted else 0.0), (both / true if true else 0.0)
        f1 = 2 * both / (predicted + true) if predicted + true else 0.0
        return LabelMetrics(self.labels[i], precision, recall, f1, true)

    def _confusion(self) -> list[list[int]]:
        indices = range(len(self.labels))
        return [[self._pairs[true, predicted] for predicted in indices] for true in indices]


class _Calibration:
    """Confidence against correctness, in equal bins of confidence (Guo et al. 2017)."""

    def __init__(self) -> None:
        self._count, self._right, self._confidence = [0] * BINS, [0] * BINS, [0.0] * BINS

    def add(self, confidence: float, right: bool) -> None:
        place = min(int(confidence * BINS), BINS - 1)
        self._count[place] += 1
        self._right[place] += right
        self._confidence[place] += confidence

    def error(self) -> float:
        gaps = (abs(sure - right) for sure, right in zip(self._confidence, self._right, strict=True))
        return sum(gaps) / sum(self._count)


class _Numbers:
    """Errors of a regression, and the variance of the true values (Welford's way, which keeps its digits)."""

    def __init__(self) -> None:
        self._rows = 0
        self._squares = self._absolutes = self._mean = self._spread = 0.0

    def add(self, value: float, gold: float) -> None:
        self._rows += 1
        self._squares += (value - gold) ** 2
        self._absolutes += abs(value - gold)
        away = gold - self._mean
        self._mean += away / self._rows
        self._spread += away * (gold - self._mean)

    def metrics(self) -> dict[str, Any]:
        if not self._rows:
            return {}
        return {
            "mse": self._squares / self._rows,
            "mae": self._absolutes / self._rows,
            "r2": 1 - self._squares / self._spread if self._spread else None,
            "baseline_mse": self._spread / self._rows,
        }
