"""What a report shows of the rows of a job, collected in memory that does not grow with them."""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...evaluation import BINS
from ...parsing.labels import Gold
from ..rows import InputRow, PromptFields
from .thumbnails import thumbnails

STEPS = 200
"""Bins of scores, at whose edges the threshold curves have a point."""
MOST_MISTAKES, MOST_POINTS, LONGEST_TEXT = 30, 3000, 600


@dataclass(frozen=True)
class Mistake:
    """A row that the model got wrong.

    Args:
        size: the probability that it gave to what is wrong; of a regression, the distance.
        place: the file and the line.
        pictures: data URIs.
    """

    size: float
    place: str
    text: str
    true: str
    predicted: str
    pictures: Sequence[str] = ()


class ReportData:
    """Histograms, a sample and the worst mistakes: `add` rows.

    Args:
        labels: the names of the labels; of one label alone, "0" and "1".
        problem_type: as in transformers; None is single-label.
        threshold: probability from which a multi-label model gives a label.
        prompts: where a row has its text and its pictures.
    """

    def __init__(
        self, labels: Sequence[str], problem_type: str | None, threshold: float, prompts: PromptFields
    ) -> None:
        self.labels, self.threshold = labels, threshold
        self.multi, self.regression = problem_type == "multi_label_classification", problem_type == "regression"
        self._prompts = prompts
        self.right, self.wrong = [0] * STEPS, [0] * STEPS  # rows by confidence; of multi-label, labels of rows
        self.bin_count, self.bin_right, self.bin_sum = [0] * BINS, [0] * BINS, [0.0] * BINS
        self.positives, self.negatives = [0] * STEPS, [0] * STEPS  # by score
        self.points: list[tuple[float, float]] = []  # (true, predicted) of a regression
        self.rows = 0
        self._chance = random.Random(0)
        self._worst: list[tuple[float, int, Mistake]] = []

    @property
    def has_thresholds(self) -> bool:
        """Whether there is a threshold to choose: for two labels, or several at once."""
        return self.multi or (not self.regression and len(self.labels) == 2)

    @property
    def mistakes(self) -> list[Mistake]:
        """The worst first."""
        return [mistake for _, _, mistake in sorted(self._worst, reverse=True)]

    def add(self, probs: Sequence[float], gold: Gold, row: InputRow) -> None:
        """One row with its true label; see `Counts.add`."""
        self.rows += 1
        if self.regression:
            self._add_number(probs[0], float(gold), row)  # type: ignore[arg-type]
        elif isinstance(gold, frozenset):
            self._add_multi(probs, gold, row)
        else:
            self._add_single([1 - probs[0], probs[0]] if len(probs) == 1 else probs, int(gold), row)

    def _add_single(self, probs: Sequence[float], gold: int, row: InputRow) -> None:
        chosen = max(range(len(probs)), key=probs.__getitem__)
        self._count(probs[chosen], chosen == gold)
        if self.has_thresholds:
            (self.positives if gold == 1 else self.negatives)[_bin(probs[1], STEPS)] += 1
        if chosen != gold:
            self._mistake(probs[chosen], row, self.labels[gold], self.labels[chosen])

    def _add_multi(self, probs: Sequence[float], gold: frozenset[int], row: InputRow) -> None:
        worst = 0.0
        for index, prob in enumerate(probs):
            self._count(max(prob, 1 - prob), (prob >= 0.5) == (index in gold))
            (self.positives if index in gold else self.negatives)[_bin(prob, STEPS)] += 1
            if (prob >= self.threshold) != (index in gold):
                worst = max(worst, 1 - prob if index in gold else prob)
        if worst:
            chosen = [index for index, prob in enumerate(probs) if prob >= self.threshold]
            self._mistake(worst, row, self._names(sorted(gold)), self._names(chosen))

    def _add_number(self, value: float, gold: float, row: InputRow) -> None:
        if len(self.points) < MOST_POINTS:
            self.points.append((gold, value))
        elif (place := self._chance.randrange(self.rows)) < MOST_POINTS:  # each row is as likely to be in the sample
            self.points[place] = (gold, value)
        if value != gold:
            self._mistake(abs(value - gold), row, f"{gold:.4g}", f"{value:.4g}")

    def _count(self, confidence: float, right: bool) -> None:
        (self.right if right else self.wrong)[_bin(confidence, STEPS)] += 1
        place = _bin(confidence, BINS)
        self.bin_count[place] += 1
        self.bin_right[place] += right
        self.bin_sum[place] += confidence

    def _names(self, indices: Sequence[int]) -> str:
        return ", ".join(self.labels[index] for index in indices) or "none"

    def _mistake(self, size: float, row: InputRow, true: str, predicted: str) -> None:
        """Keep it if it is among the worst; of equal ones, those that came first."""
        if len(self._worst) == MOST_MISTAKES and (size, -self.rows) <= self._worst[0][:2]:
            return
        pictures = thumbnails(row, self._prompts.image)
        mistake = Mistake(size, row.place, _text_of(row.fields, self._prompts), true, predicted, pictures)
        entry = (size, -self.rows, mistake)
        (heapq.heappush if len(self._worst) < MOST_MISTAKES else heapq.heapreplace)(self._worst, entry)


def _bin(share: float, count: int) -> int:
    return min(int(share * count), count - 1)


def _text_of(fields: Mapping[str, Any], prompts: PromptFields) -> str:
    """What the model read of a row, shortened."""
    names = [prompts.messages] if prompts.messages else [prompts.text, prompts.pair]
    values = [fields.get(name) for name in names if name is not None]
    parts = [value if isinstance(value, str) else json.dumps(value, default=str) for value in values if value]
    text = " ⟂ ".join(part[: LONGEST_TEXT + 1] for part in parts)
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"
