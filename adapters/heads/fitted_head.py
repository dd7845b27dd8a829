"""A linear head fitted on the frozen model's pooled states, its regularisation chosen by cross-validation."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from vllm_cls.architecture import Head, HeadRequest, HeadResult, LinearHead
from vllm_cls.errors import ConfigError
from vllm_cls.evaluation import measured

from .linear_models import PROBLEMS, Fitted, Problem, softmax
from .training_labels import targets_as_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

_START, _STEPS = -2, 8  # C from 10^-4 to 10^4, first 0.1
_FOLDS = 5
_MEASURED = ("accuracy", "macro_f1", "log_loss", "calibration_error", "majority", "mse", "baseline_mse")


@dataclass(frozen=True)
class _Candidate:
    """Features that a head may be fitted on: `states` `(num_rows, hidden)`, float64."""

    states: NDArray[np.float64]
    on_features: bool
    intercept: bool


def fitted_head(request: HeadRequest) -> HeadResult:
    """A head from labelled rows (`options["prompts"]`, `options["targets"]`).

    Multinomial logistic regression, one regression a label for multi-label, ridge for regression. The
    intercept is fitted only where the classifier class can hold it, or with `--bias`.

    Raises:
        ConfigError: there are too few rows or labels.
    """
    prompts, targets = request.options["prompts"], request.options["targets"]
    problem_type = request.problem_type or "single_label_classification"
    labels, values = list(request.labels), targets_as_array(request.labels, targets, problem_type)
    if problem_type == "single_label_classification" and len(labels) < 2:
        raise ConfigError(f"--train: there must be two labels, and there is only {labels[0]!r}.")
    pooled, features = request.states(prompts)
    seed, share = int(request.options.get("seed") or 0), float(request.options.get("validation_split", 0.2))
    train, held_out = _split(values, share, seed, problem_type)
    problem = PROBLEMS[problem_type]
    candidates = _candidates(request, pooled, features, len(labels))
    # These products are too small to share: with one thread a fit takes a tenth of the time.
    with threadpool_limits(1):
        searches = [_search(problem, each, train, values, seed, problem_type) for each in candidates]
    chosen, (_, strength) = min(zip(candidates, searches, strict=True), key=lambda pair: pair[1])
    states, intercept = chosen.states, chosen.intercept
    report: dict[str, Any] = {"rows": len(values), "regularisation_C": strength}
    if len(held_out):
        judged = problem.fit(states[train], values[train], strength, intercept).logits(states[held_out])
        report |= {"held_out_rows": len(held_out), **_report(judged, values[held_out], labels, problem_type)}
    final = problem.fit(states, values, strength, intercept)
    head = Head(
        "fit",
        _linear(final, intercept),
        on_features=chosen.on_features,
        description=_description(request, report, chosen.on_features),
        report=report,
    )
    return HeadResult(head, labels, problem_type)


def _linear(fitted: Fitted, intercept: bool) -> LinearHead:
    import torch

    weight = torch.tensor(fitted.weight, dtype=torch.float32)
    return LinearHead(weight, torch.tensor(fitted.bias, dtype=torch.float32) if intercept else None)


def _candidates(request: HeadRequest, pooled: Any, features: Any, num_labels: int) -> list[_Candidate]:
    """The features to try: the pooled state, and the output of a trained pooler where there is one.

    The state itself only where the classifier class, or our own, can hold a head on it.
    """
    bias = bool(request.options.get("bias"))
    found = []
    if features is not None:
        found.append(_Candidate(features.double().numpy(), True, True))
    hidden = pooled.shape[1]
    standard = request.pooling == request.architecture.pooling(request.config)
    with_bias = standard and _expressible(request, num_labels, hidden, bias=True)
    without = standard and _expressible(request, num_labels, hidden, bias=False)
    if features is None or with_bias:
        # Only decoders' `score` has no place for an intercept; our own format, for what no class holds, has.
        found.append(_Candidate(pooled.double().numpy(), False, bias or with_bias or not without))
    return found


def _expressible(request: HeadRequest, num_labels: int, hidden: int, *, bias: bool) -> bool:
    import torch

    linear = LinearHead(torch.zeros(num_labels, hidden), torch.zeros(num_labels) if bias else None)
    return request.architecture.express(request.config, linear, on_features=False) is not None


def _split(values: NDArray[Any], share: float, seed: int, problem_type: str) -> tuple[NDArray[Any], NDArray[Any]]:
    from sklearn.model_selection import train_test_split

    if not 0 <= share < 1:
        raise ConfigError(f"--validation-split {share} must be at least 0 and below 1.")
    everything = np.arange(len(values))
    if share == 0:
        return everything, everything[:0]
    single = problem_type == "single_label_classification"
    enough = single and len(values) * share >= len(np.unique(values))
    train, held_out = train_test_split(
        everything, test_size=share, random_state=seed, stratify=values if enough else None
    )
    return train, held_out


def _search(
    problem: Problem, candidate: _Candidate, train: NDArray[Any], values: NDArray[Any], seed: int, problem_type: str
) -> tuple[float, float]:
    """`(loss, C)` of the best regularisation strength: a search over half decades by cross-validated loss."""
    from sklearn.model_selection import KFold, StratifiedKFold

    states, values = candidate.states[train], values[train]
    folds: Any = KFold(_FOLDS, shuffle=True, random_state=seed)
    if problem_type == "single_label_classification":
        rarest = int(np.bincount(values).min())
        folds = StratifiedKFold(min(_FOLDS, max(rarest, 2)), shuffle=True, random_state=seed)
    splits = list(folds.split(states, values))

    @functools.cache
    def loss(step: int) -> float:
        losses = []
        for fitted_on, judged_on in splits:
            fitted = problem.fit(states[fitted_on], values[fitted_on], _strength(step), candidate.intercept)
            losses.append(problem.loss(fitted.logits(states[judged_on]), values[judged_on]))
        return float(np.mean(losses))

    best = _START
    for direction in (-1, 1):
        while abs(best + direction) <= _STEPS and loss(best + direction) < loss(best):
            best += direction
    return loss(best), _strength(best)


def _strength(step: int) -> float:
    """Half decades: C = 10^(step / 2)."""
    return float(10 ** (step / 2))


def _report(logits: NDArray[Any], values: NDArray[Any], labels: Sequence[str], problem_type: str) -> dict[str, Any]:
    """Metrics on held-out rows, with those of always predicting the commonest label (or the mean)."""
    gold: list[Any]
    if problem_type == "regression":
        rows, gold = logits, values[:, 0].tolist()
    elif problem_type == "multi_label_classification":
        rows, gold = 1 / (1 + np.exp(-logits)), [frozenset(np.flatnonzero(row).tolist()) for row in values]
    else:
        rows, gold = softmax(logits), values.tolist()
    found = measured(rows.tolist(), gold, labels, problem_type)
    return {name: value for name in _MEASURED if (value := getattr(found, name)) is not None}


def _description(request: HeadRequest, report: Mapping[str, Any], on_features: bool) -> str:
    through = ", taken through its own pooler," if on_features else ""
    name = request.options.get("train_name", "labelled rows")
    held = (
        f"; measured on {report['held_out_rows']} rows held out, then fitted on all"
        if "held_out_rows" in report
        else ""
    )
    return (
        f"A linear head fitted on the frozen model's {request.pooling} states{through} of {report['rows']} rows of `{name}` "
        f"(regularisation chosen by cross-validation: C = {report['regularisation_C']:g}){held}."
    )
