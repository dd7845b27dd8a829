"""Compares the logits of two contenders, before anything is timed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOLERANCES = {"float32": 2e-3, "float16": 5e-2, "bfloat16": 3e-1, "int8": 3.0, "fp8": 3.0}
"""Largest difference of a logit by how far the texts' logits lie apart; int8 is judged by labels, 3.0 only finds bugs."""


@dataclass(frozen=True)
class Agreement:
    """How far the logits of a contender are from the reference's.

    Args:
        logit_difference: the largest absolute difference of one logit.
        spread: the standard deviation of the reference's logits over the texts (its largest, over the labels).
        labels_changed: the share of texts with another label, in percent.
        probability_change: the largest absolute change of one probability.
        tolerance: of `logit_difference / spread`.
    """

    logit_difference: float
    spread: float
    labels_changed: float
    probability_change: float
    tolerance: float

    @property
    def equal(self) -> bool:
        """Whether the difference is what rounding explains."""
        return self.logit_difference <= self.tolerance * self.spread


def agreement(reference: np.ndarray, found: np.ndarray, *, precision: str, multi_label: bool = False) -> Agreement:
    """Compare logits `(num_texts, num_labels)`.

    Args:
        precision: a key of `TOLERANCES`.
        multi_label: each label has a probability of its own (sigmoid), as where there is one label only.
    """
    if reference.shape != found.shape:
        return Agreement(float("inf"), 0.0, 100.0, 1.0, TOLERANCES[precision])
    multi_label = multi_label or reference.shape[1] == 1
    spread = max(float(reference.std(axis=0).max()), 1e-4 * float(np.abs(reference).max()), 1e-7)
    if multi_label:
        changed = ((reference > 0) != (found > 0)).any(axis=1)
    else:
        changed = reference.argmax(axis=1) != found.argmax(axis=1)
    change = np.abs(probabilities(reference, multi_label) - probabilities(found, multi_label))
    difference = float(np.abs(reference - found).max())
    if not np.isfinite(difference):
        difference = float("inf")
    return Agreement(difference, spread, 100 * float(changed.mean()), float(change.max()), TOLERANCES[precision])


def probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Softmax over the labels, or a sigmoid for each."""
    if multi_label:
        return np.asarray(1 / (1 + np.exp(-logits)))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
