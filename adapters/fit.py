"""A linear head fitted on the frozen model's pooled states, its regularisation chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_cls.architecture import Head, HeadRequest, HeadResult, LinearHead
from vllm_cls.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STRENGTHS = tuple(10.0**power for power in range(-4, 4))
_FOLDS = 5
_BINS = 15


@dataclass(frozen=True)
class _Fitted:
    """`logits = states @ weight.T + bias`, both float64."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def logits(self, states: NDArray[Any]) -> NDArray[np.float64]:
        return states @ self.weight.T + self.bias


@dataclass(frozen=True)
class _Problem:
    """What is fitted: the estimator, how it is judged, and how targets become arrays."""

    fit: Callable[[NDArray[Any], NDArray[Any], float, bool], _Fitted]
    loss: Callable[[NDArray[Any], NDArray[Any]], float]


def fitted_head(request: HeadRequest) -> HeadResult:
    """A head from labelled rows (`options["prompts"]`, `options["targets"]`).

    Multinomial logistic regression, one regression a label for multi-label, ridge for regression. The
    intercept is fitted only where the classifier class can hold it, or with `--bias`.

    Raises:
        ConfigError: there are too few rows, or targets that are not among the labels.
    """
    prompts, targets = request.options["prompts"], request.options["targets"]
    problem_type = request.problem_type or "single_label_classification"
    labels, values = _targets(list(request.labels), targets, problem_type)
    pooled, features = request.states(prompts)
    on_features = features is not None
    states = (features if features is not None else pooled).double().numpy()
    intercept = bool(request.options.get("bias")) or _holds_bias(request, states.shape[1], len(labels), on_features)
    problem = _PROBLEMS[problem_type]
    seed, share = int(request.options.get("seed") or 0), float(request.options.get("validation_split", 0.2))
    train, held_out = _split(values, share, seed, problem_type)
    strength = _best_strength(problem, states[train], values[train], intercept, seed, problem_type)
    report: dict[str, Any] = {"rows": len(values), "regularisation_C": strength}
    if len(held_out):
        judged = problem.fit(states[train], values[train], strength, intercept).logits(states[held_out])
        report |= {"held_out_rows": len(held_out), **_report(judged, values[held_out], values[train], problem_type)}
    final = problem.fit(states, values, strength, intercept)
    head = Head("fit", _linear(final, intercept), on_features=on_features, description=_description(request, report), report=report)
    return HeadResult(head, labels, problem_type)


def _linear(fitted: _Fitted, intercept: bool) -> LinearHead:
    import torch

    weight = torch.tensor(fitted.weight, dtype=torch.float32)
    return LinearHead(weight, torch.tensor(fitted.bias, dtype=torch.float32) if intercept else None)


def _holds_bias(request: HeadRequest, hidden: int, num_labels: int, on_features: bool) -> bool:
    """Whether the class has a place for an intercept: decoders' `score` has none."""
    import torch

    config = request.config
    if request.pooling != request.architecture.pooling(config):
        return True  # our own format, which holds anything
    tried = LinearHead(torch.zeros(num_labels, hidden), torch.ones(num_labels))
    plain = LinearHead(torch.zeros(num_labels, hidden))
    with_bias = request.architecture.express(config, tried, on_features=on_features)
    without = request.architecture.express(config, plain, on_features=on_features)
    return with_bias is not None or without is None


def _targets(labels: list[str], targets: Sequence[Any], problem_type: str) -> tuple[list[str], NDArray[Any]]:
    """Labels and the targets as an array: indices, a 0/1 matrix, or numbers."""
    if len(targets) < 10:
        raise ConfigError(f"--train has {len(targets)} usable rows; a head needs at least 10.")
    if problem_type == "regression":
        try:
            return labels or ["value"], np.array([float(each) for each in targets]).reshape(len(targets), -1)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"--train: for regression every label must be a number ({error}).") from error
    if problem_type == "multi_label_classification":
        rows = [each if isinstance(each, (list, tuple)) else [each] for each in targets]
        labels = labels or sorted({str(name) for row in rows for name in row})
        _known({str(name) for row in rows for name in row}, labels)
        return labels, np.array([[float(label in map(str, row)) for label in labels] for row in rows])
    names, indices = _class_indices(labels, targets)
    counts = np.bincount(indices, minlength=len(names))
    if counts.min() < 2 or len(names) < 2:
        rare = names[int(counts.argmin())] if len(names) else "?"
        raise ConfigError(f"--train: every label needs at least 2 rows, and there must be two labels; {rare!r} has {counts.min()}.")
    return names, indices


def _class_indices(labels: list[str], targets: Sequence[Any]) -> tuple[list[str], NDArray[Any]]:
    """Label names or indices → indices; numbers mean indices where the labels are not themselves numbers."""
    found = sorted({str(each) for each in targets}, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    if labels and not set(found) <= set(labels) and all(name.isdigit() and int(name) < len(labels) for name in found):
        return labels, np.array([int(each) for each in targets])
    labels = labels or found
    _known(set(found), labels)
    index = {label: number for number, label in enumerate(labels)}
    return labels, np.array([index[str(each)] for each in targets])


def _known(found: set[str], labels: Sequence[str]) -> None:
    unknown = sorted(found - set(labels))
    if unknown:
        raise ConfigError(f"--train has the label {unknown[0]!r}, which --labels ({', '.join(labels)}) does not name.")


def _split(values: NDArray[Any], share: float, seed: int, problem_type: str) -> tuple[NDArray[Any], NDArray[Any]]:
    from sklearn.model_selection import train_test_split

    if not 0 <= share < 1:
        raise ConfigError(f"--validation-split {share} must be at least 0 and below 1.")
    everything = np.arange(len(values))
    if share == 0:
        return everything, everything[:0]
    single = problem_type == "single_label_classification"
    enough = single and len(values) * share >= len(np.unique(values))
    train, held_out = train_test_split(everything, test_size=share, random_state=seed, stratify=values if enough else None)
    return train, held_out


def _best_strength(
    problem: _Problem, states: NDArray[Any], values: NDArray[Any], intercept: bool, seed: int, problem_type: str
) -> float:
    from sklearn.model_selection import KFold, StratifiedKFold

    folds: Any = KFold(_FOLDS, shuffle=True, random_state=seed)
    if problem_type == "single_label_classification":
        rarest = int(np.bincount(values).min())
        folds = StratifiedKFold(min(_FOLDS, max(rarest, 2)), shuffle=True, random_state=seed)
    splits = list(folds.split(states, values))

    def cost(strength: float) -> float:
        losses = []
        for train, test in splits:
            fitted = problem.fit(states[train], values[train], strength, intercept)
            losses.append(problem.loss(fitted.logits(states[test]), values[test]))
        return float(np.mean(losses))

    return min(_STRENGTHS, key=cost)


def _scales(states: NDArray[Any]) -> NDArray[np.float64]:
    """Root mean square of each dimension: states with outlier dimensions are fitted on one scale."""
    scale = np.sqrt((states**2).mean(axis=0))
    return np.where(scale > 1e-12, scale, 1.0)


def _logistic(states: NDArray[Any], values: NDArray[Any], strength: float, intercept: bool) -> _Fitted:
    from sklearn.linear_model import LogisticRegression

    scale = _scales(states)
    model = LogisticRegression(C=strength, max_iter=2000, fit_intercept=intercept).fit(states / scale, values)
    weight, bias = model.coef_ / scale, np.broadcast_to(model.intercept_, len(model.coef_)).astype(float)
    if len(weight) == 1:  # two classes: sklearn keeps one row, their difference
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return _Fitted(weight, bias)


def _one_vs_rest(states: NDArray[Any], values: NDArray[Any], strength: float, intercept: bool) -> _Fitted:
    rows = []
    for column in values.T:
        if column.min() == column.max():  # a label that these rows never (or always) have
            rows.append(_Fitted(np.zeros((2, states.shape[1])), np.array([0.0, 10.0 * (2 * column[0] - 1)]) * intercept))
        else:
            rows.append(_logistic(states, column.astype(int), strength, intercept))
    weight = np.stack([each.weight[1] - each.weight[0] for each in rows])
    return _Fitted(weight, np.array([each.bias[1] - each.bias[0] for each in rows]))


def _ridge(states: NDArray[Any], values: NDArray[Any], strength: float, intercept: bool) -> _Fitted:
    from sklearn.linear_model import Ridge

    scale = _scales(states)
    model = Ridge(alpha=1 / strength, fit_intercept=intercept).fit(states / scale, values)
    weight = np.atleast_2d(model.coef_) / scale
    return _Fitted(weight, np.broadcast_to(np.atleast_1d(model.intercept_), len(weight)).astype(float))


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _cross_entropy(logits: NDArray[Any], values: NDArray[Any]) -> float:
    return float(-np.log(_softmax(logits)[np.arange(len(values)), values].clip(1e-12)).mean())


def _binary_cross_entropy(logits: NDArray[Any], values: NDArray[Any]) -> float:
    return float((np.logaddexp(0, logits) - values * logits).mean())


def _squared(logits: NDArray[Any], values: NDArray[Any]) -> float:
    return float(((logits - values) ** 2).mean())


_PROBLEMS: Mapping[str, _Problem] = {
    "single_label_classification": _Problem(_logistic, _cross_entropy),
    "multi_label_classification": _Problem(_one_vs_rest, _binary_cross_entropy),
    "regression": _Problem(_ridge, _squared),
}


def _report(logits: NDArray[Any], values: NDArray[Any], train: NDArray[Any], problem_type: str) -> dict[str, float]:
    """Measurements on held-out rows, beside what the commonest training label (or their mean) would get."""
    from sklearn.metrics import f1_score

    if problem_type == "regression":
        return {"mse": _squared(logits, values), "baseline_mse": _squared(train.mean(axis=0), values)}
    if problem_type == "multi_label_classification":
        chosen = logits > 0
        return {
            "accuracy": float((chosen == (values > 0)).all(axis=1).mean()),
            "macro_f1": float(f1_score(values > 0, chosen, average="macro", zero_division=0)),
            "log_loss": _binary_cross_entropy(logits, values),
            "majority": float(((train.mean(axis=0) > 0.5) == (values > 0)).all(axis=1).mean()),
        }
    probabilities, chosen = _softmax(logits), logits.argmax(axis=1)
    return {
        "accuracy": float((chosen == values).mean()),
        "macro_f1": float(f1_score(values, chosen, average="macro", zero_division=0)),
        "log_loss": _cross_entropy(logits, values),
        "calibration_error": _calibration_error(probabilities.max(axis=1), chosen == values),
        "majority": float((np.bincount(train).argmax() == values).mean()),
    }


def _calibration_error(confidence: NDArray[Any], right: NDArray[Any]) -> float:
    """Expected calibration error over equal bins of confidence (Guo et al. 2017)."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(sum(gaps))


def _description(request: HeadRequest, report: Mapping[str, Any]) -> str:
    name = request.options.get("train_name", "labelled rows")
    held = f"; measured on {report['held_out_rows']} rows held out, then fitted on all" if "held_out_rows" in report else ""
    return (
        f"A linear head fitted on the frozen model's {request.pooling} states of {report['rows']} rows of `{name}` "
        f"(regularisation chosen by cross-validation: C = {report['regularisation_C']:g}){held}."
    )
