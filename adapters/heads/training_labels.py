"""Labels of training rows as arrays, and the check that there are enough of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_cls.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEAST = 10


def targets_as_array(
    labels: Sequence[str], targets: Sequence[Any], problem_type: str | None, option: str = "--train"
) -> NDArray[Any]:
    """Indices `(num_rows,)`, a 0/1 matrix or numbers `(num_rows, num_labels)`.

    Args:
        labels: in the order of their indices; one alone is true (1) or not (0), where the problem is no other.
        targets: as `HeadRequest.options` has them.
        option: that named the rows' file, for errors.

    Raises:
        ConfigError: there are too few rows, of a label or of all.
    """
    if len(targets) < _LEAST:
        raise ConfigError(f"{option} has {len(targets)} usable rows; at least {_LEAST} are needed.")
    if problem_type == "regression":
        if len(labels) > 1:
            raise ConfigError(f"{option}: a regression learns one number a row, and --labels names {len(labels)}.")
        return np.array(targets, dtype=float).reshape(len(targets), 1)
    if problem_type == "multi_label_classification":
        return np.array(targets, dtype=float)
    names = [f"not {labels[0]}", labels[0]] if len(labels) == 1 else labels
    values = np.array(targets, dtype=int)
    counts = np.bincount(values, minlength=len(names))
    if counts.min() < 2:
        raise ConfigError(
            f"{option}: every label needs at least 2 rows, and there must be two labels; {names[int(counts.argmin())]!r} has "
            f"{counts.min()}."
        )
    return values
