"""The labels of rows, as a file has them, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_cls.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def targets_as_array(
    labels: list[str], targets: Sequence[Any], problem_type: str, option: str = "--train"
) -> tuple[list[str], NDArray[Any]]:
    """Labels and the targets as an array: indices, a 0/1 matrix, or numbers.

    Args:
        labels: in the order of their indices; empty to take those of the targets.
        option: that named the rows' file, for errors.

    Raises:
        ConfigError: there are too few rows, or one has a label that is none of `labels`.
    """
    if len(targets) < 10:
        raise ConfigError(f"{option} has {len(targets)} usable rows; at least 10 are needed.")
    if problem_type == "regression":
        try:
            return labels or ["value"], np.array([float(each) for each in targets]).reshape(len(targets), -1)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{option}: for regression every label must be a number ({error}).") from error
    if problem_type == "multi_label_classification":
        rows = [each if isinstance(each, (list, tuple)) else [each] for each in targets]
        labels = labels or sorted({str(name) for row in rows for name in row})
        _known({str(name) for row in rows for name in row}, labels, option)
        return labels, np.array([[float(label in map(str, row)) for label in labels] for row in rows])
    names, indices = _class_indices(labels, targets, option)
    counts = np.bincount(indices, minlength=len(names))
    if counts.min() < 2 or len(names) < 2:
        rare = names[int(counts.argmin())] if len(names) else "?"
        raise ConfigError(
            f"{option}: every label needs at least 2 rows, and there must be two labels; {rare!r} has {counts.min()}."
        )
    return names, indices


def _class_indices(labels: list[str], targets: Sequence[Any], option: str) -> tuple[list[str], NDArray[Any]]:
    """Label names or indices → indices; numbers mean indices where the labels are not themselves numbers."""
    found = sorted(
        {str(each) for each in targets}, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name)
    )
    if labels and not set(found) <= set(labels) and all(name.isdigit() and int(name) < len(labels) for name in found):
        return labels, np.array([int(each) for each in targets])
    labels = labels or found
    _known(set(found), labels, option)
    index = {label: number for number, label in enumerate(labels)}
    return labels, np.array([index[str(each)] for each in targets])


def _known(found: set[str], labels: Sequence[str], option: str) -> None:
    unknown = sorted(found - set(labels))
    if unknown:
        raise ConfigError(f"{option} has the label {unknown[0]!r}, which --labels ({', '.join(labels)}) does not name.")
