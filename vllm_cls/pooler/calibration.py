"""Calibration of logits: a temperature, and where asked a bias for each label, by the log loss of labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDS = 5
_SCALES = (1e-3, 1e3)
_MOST_BIAS = 100.0


@dataclass(frozen=True)
class Calibration:
    """`logits * scale + bias`; the temperature is `1 / scale`."""

    scale: float
    bias: NDArray[np.float64]

    def apply(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        return logits * self.scale + self.bias


def fit(logits: NDArray[Any], gold: NDArray[Any], intercept: bool, *, multi_label: bool = False) -> Calibration:
    """The temperature and biases with the least log loss, a convex problem.

    Args:
        logits: `(num_rows, num_labels)`; -inf for a label that a row cannot have.
        gold: the same shape, 1 where a label is true.
        intercept: fit biases, too.
        multi_label: each label by itself (sigmoid); one label alone always is.
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp, softmax

    alone = multi_label or logits.shape[1] == 1
    there = np.isfinite(logits)
    spread = float(logits[there].std()) or 1.0  # so that both kinds of parameters have one scale
    scaled_logits = np.where(there, logits, 0) / spread
    num_labels = logits.shape[1]

    def objective(values: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        scores = scaled_logits * values[0] + (values[1:] if intercept else 0)
        if alone:
            loss = float((np.logaddexp(0, scores) - gold * scores).sum(axis=1).mean())
            probs = 1 / (1 + np.exp(-np.clip(scores, -500, 500)))
        else:
            possible = np.where(there, scores, -np.inf)
            loss = float((logsumexp(possible, axis=1) - (gold * scores).sum(axis=1)).mean())
            probs = softmax(possible, axis=1)
        away = (probs - gold) / len(gold)
        slope = [np.array([(away * scaled_logits).sum()])] + ([away.sum(axis=0)] if intercept else [])
        return loss, np.concatenate(slope)

    start = np.array([spread] + [0.0] * (num_labels if intercept else 0))
    bounds = [(_SCALES[0] * spread, _SCALES[1] * spread)] + [(-_MOST_BIAS, _MOST_BIAS)] * (len(start) - 1)
    values = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    bias = values[1:] if intercept else np.zeros(num_labels)
    return Calibration(float(values[0]) / spread, bias if alone else bias - bias.mean())


def held_out(
    logits: NDArray[Any],
    gold: NDArray[Any],
    folds: Sequence[tuple[Any, Any]],
    intercept: bool,
    *,
    multi_label: bool = False,
) -> NDArray[np.float64]:
    """Each row's logits, calibrated on the rows of other folds.

    Args:
        folds: indices of the rows to fit on, and of those to calibrate.
    """
    found = np.empty_like(logits)
    for fitted_on, others in folds:
        calibration = fit(logits[fitted_on], gold[fitted_on], intercept, multi_label=multi_label)
        found[others] = calibration.apply(logits[others])
    return found
