"""Calibration: a temperature for all logits and a bias for each label, by the log loss of labelled rows.

Temperature scaling is Guo et al. 2017 (On Calibration of Modern Neural Networks), with one label Platt scaling; the
biases undo what a language model prefers whatever the text is (Zhao et al. 2021, Calibrate Before Use). Every row is
judged by a calibration that was fitted without it, and without an improvement there the head stays as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vllm_cls.architecture import CalibrationRequest, Head, HeadResult
from vllm_cls.config import labels_of
from vllm_cls.errors import ConfigError
from vllm_cls.evaluation import measured
from vllm_cls.pooler.calibration import FOLDS, Calibration, fit, held_out

from ..classifiers.seq_cls import own_settings
from ..classifiers.sequence_settings import sequences_from
from .linear_heads import StoredHead, scaled_tensors, stored_head
from .linear_models import softmax
from .training_labels import targets_as_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MEASURED = ("log_loss", "accuracy", "calibration_error")


@dataclass(frozen=True)
class _Rows:
    """Labelled rows: logits `(num_rows, num_labels)`, `gold` the same with 1 for true, `classes` to stratify by."""

    logits: NDArray[np.float64]
    gold: NDArray[np.float64]
    classes: NDArray[np.int64] | None
    multi_label: bool

    def probabilities(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        if self.multi_label or logits.shape[1] == 1:
            each: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
            return each
        return softmax(logits)


def calibrate(request: CalibrationRequest) -> HeadResult:
    """The head with the fitted calibration folded into its last layer, or unchanged where that does not help.

    The report gets `calibration`: what was measured before and after, and whether it was applied (`kept`).

    Raises:
        ConfigError: the head's last layer is not found, or there are too few rows.
    """
    head = request.result.head
    rows = _rows(request)
    stored, target = None, request.target
    sequences = head.sequences or sequences_from(own_settings(target.config))
    if sequences is not None:
        head = replace(head, sequences=sequences)
    elif head.linear is None:
        stored = stored_head(request.architecture, target.config, target.classifier_class, head, request.checkpoint)
        if stored is None:
            raise ConfigError(
                f"--calibrate: the last linear layer of this {head.method} head is not known; a plugin's final_linear says it."
            )
    intercept = request.intercept and (stored is None or stored.linear is not None or stored.names[1] is not None)
    folds = _folds(rows, request.seed)
    judged = {with_bias: _judge(rows, folds, with_bias) for with_bias in ([False, True] if intercept else [False])}
    with_bias = min(judged, key=lambda each: judged[each]["log_loss"])
    before, after = _measure(rows, rows.logits, request), judged[with_bias]
    after = _measure(rows, after.pop("logits"), request)
    improved = after["log_loss"] < before["log_loss"]
    found = fit(rows.logits, rows.gold, with_bias, multi_label=rows.multi_label)
    report: dict[str, Any] = {"rows": len(rows.logits), "kept": improved}
    report |= {
        f"{name}_{when}": metrics[name]
        for name in _MEASURED
        for when, metrics in (("before", before), ("after", after))
    }
    if improved:
        report["temperature"] = 1 / found.scale
        report |= {"bias": [float(each) for each in found.bias]} if with_bias else {}
    changed = _folded(head, stored, found, with_bias) if improved else request.result.head
    text = f"{head.description} {_description(request, improved, with_bias)}".strip()
    changed = replace(changed, description=text, report={**head.report, "calibration": report})
    return replace(request.result, head=changed)


def _rows(request: CalibrationRequest) -> _Rows:
    logits = request.logits.double().numpy()
    labels = list(labels_of(request.target.config).values())
    problem_type = request.target.config.problem_type
    if not np.isfinite(logits).all():
        raise ConfigError("--calibrate: the head gives NaN or infinity for a row; try --dtype float32.")
    values = targets_as_array(labels, request.targets, problem_type, "--calibrate")
    if problem_type == "multi_label_classification":
        return _Rows(logits, values, None, True)
    gold = values[:, None].astype(float) if len(labels) == 1 else np.eye(len(labels))[values]
    return _Rows(logits, gold, values, False)


def _folds(rows: _Rows, seed: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    from sklearn.model_selection import KFold, StratifiedKFold

    if rows.classes is None:
        return list(KFold(FOLDS, shuffle=True, random_state=seed).split(rows.logits))
    count = max(2, min(FOLDS, int(np.bincount(rows.classes).min())))
    return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(rows.logits, rows.classes))


def _judge(rows: _Rows, folds: Sequence[tuple[Any, Any]], intercept: bool) -> dict[str, Any]:
    """Cross-validation: each row's logits, calibrated on the other folds, and their log loss."""
    logits = held_out(rows.logits, rows.gold, folds, intercept, multi_label=rows.multi_label)
    probs = rows.probabilities(logits).clip(1e-15, 1 - 1e-15)
    alone = rows.multi_label or probs.shape[1] == 1
    losses = -(rows.gold * np.log(probs) + alone * (1 - rows.gold) * np.log1p(-probs))
    return {"logits": logits, "log_loss": float(losses.sum(axis=1).mean())}


def _measure(rows: _Rows, logits: NDArray[Any], request: CalibrationRequest) -> dict[str, float]:
    gold: list[Any]
    if rows.classes is None:
        gold = [frozenset(np.flatnonzero(row).tolist()) for row in rows.gold]
    else:
        gold = rows.classes.tolist()
    names, problem_type = list(labels_of(request.target.config).values()), request.target.config.problem_type
    metrics = measured(rows.probabilities(logits).tolist(), gold, names, problem_type)
    return {name: float(getattr(metrics, name)) for name in _MEASURED}


def _folded(head: Head, stored: StoredHead | None, found: Calibration, with_bias: bool) -> Head:
    """The head with the calibration in its last layer."""
    if head.sequences is not None:
        offsets = [float(each) for each in found.bias] if with_bias else []
        return replace(head, sequences=head.sequences.rescaled(found.scale, offsets))
    offset = torch.tensor(found.bias, dtype=torch.float32) if with_bias else None
    linear = head.linear if stored is None else stored.linear
    if linear is not None:
        return replace(head, linear=linear.rescaled(found.scale, offset), tensors=None)
    assert stored is not None
    return replace(head, tensors={**(head.tensors or {}), **scaled_tensors(stored, found.scale, offset)})


def _description(request: CalibrationRequest, improved: bool, with_bias: bool) -> str:
    what = "a temperature and a bias for each label" if with_bias else "a temperature"
    if improved:
        return f"Its logits are calibrated by {what}, fitted on {len(request.targets)} rows of `{request.rows_name}`."
    return (
        f"Calibration on {len(request.targets)} rows of `{request.rows_name}` did not improve the log loss of rows held out, "
        "so it was left out."
    )
