"""The linear models that are fitted to pooled states, one for each problem type, with their loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Fitted:
    """`logits = states @ weight.T + bias`, both float64."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def logits(self, states: NDArray[Any]) -> NDArray[np.float64]:
        return states @ self.weight.T + self.bias


@dataclass(frozen=True)
class Problem:
    """One problem type: its estimator, its loss, and how targets become arrays."""

    fit: Callable[[NDArray[Any], NDArray[Any], float, bool], Fitted]
    loss: Callable[[NDArray[Any], NDArray[Any]], float]


def _scaled(states: NDArray[Any], intercept: bool) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """Standardised features `(states, centre, scale)`, since some dimensions are outliers; centred only with an intercept."""
    centre = states.mean(axis=0) if intercept else np.zeros(states.shape[1])
    scale = np.sqrt(((states - centre) ** 2).mean(axis=0))
    scale = np.where(scale > 1e-12, scale, 1.0)
    return (states - centre) / scale, centre, scale


def _logistic(states: NDArray[Any], values: NDArray[Any], strength: float, intercept: bool) -> Fitted:
    from sklearn.linear_model import LogisticRegression

    scaled, centre, scale = _scaled(states, intercept)
    model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3, fit_intercept=intercept).fit(scaled, values)
    weight = model.coef_ / scale
    bias = np.broadcast_to(model.intercept_, len(weight)) - weight @ centre
    if len(weight) == 1:  # two classes: sklearn keeps one row, their difference
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Fitted(weight, bias)


def _one_vs_rest(states: NDArray[Any], values: NDArray[Any], strength: float, intercept: bool) -> Fitted:
    rows = []
    for column in values.T:
        if column.min() == column.max():  # a label that these rows never (or always) have
            rows.append(Fitted(np.zeros((2, states.shape[1])), np.array([0.0, 10.0 * (2 * column[0] - 1)]) * intercept))
        else:
            rows.append(_logistic(states, column.astype(int), strength, intercept))
    weight = np.stack([each.weight[1] - each.weight[0] for each in rows])
    return Fitted(weight, np.array([each.bias[1] - each.bias[0] for each in rows]))


def _ridge(states: NDArray[Any], values: NDArray[Any], strength: float, intercept: bool) -> Fitted:
    from sklearn.linear_model import Ridge

    scaled, centre, scale = _scaled(states, intercept)
    model = Ridge(alpha=1 / strength, fit_intercept=intercept).fit(scaled, values)
    weight = np.atleast_2d(model.coef_) / scale
    return Fitted(weight, np.broadcast_to(np.atleast_1d(model.intercept_), len(weight)) - weight @ centre)


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return shares


def _cross_entropy(logits: NDArray[Any], values: NDArray[Any]) -> float:
    return float(-np.log(softmax(logits)[np.arange(len(values)), values].clip(1e-12)).mean())


def _binary_cross_entropy(logits: NDArray[Any], values: NDArray[Any]) -> float:
    return float((np.logaddexp(0, logits) - values * logits).mean())


def _squared(logits: NDArray[Any], values: NDArray[Any]) -> float:
    return float(((logits - values) ** 2).mean())


PROBLEMS: Mapping[str, Problem] = {
    "single_label_classification": Problem(_logistic, _cross_entropy),
    "multi_label_classification": Problem(_one_vs_rest, _binary_cross_entropy),
    "regression": Problem(_ridge, _squared),
}
