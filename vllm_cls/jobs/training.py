"""Labelled rows for `--head fit` and `--calibrate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, PromptError
from .readers import read_rows
from .rows import PromptFields, missing
from .sources import find_sources


@dataclass(frozen=True)
class TrainingRows:
    """Prompts with their targets, and why rows were left out (`skipped`, one line each)."""

    prompts: list[dict[str, Any]]
    targets: list[Any]
    skipped: list[str]


def read_training_rows(path: str, fields: PromptFields, label_field: str, option: str = "--train") -> TrainingRows:
    """The usable rows of a file; a row without text or label is left out and said.

    Args:
        option: that named the file, for errors.

    Raises:
        ConfigError: no row is usable.
        JobError: the file cannot be read.
    """
    rows = TrainingRows([], [], [])
    for row in read_rows(find_sources(path)):
        try:
            if row.error is not None:
                raise PromptError(row.error)
            if row.fields.get(label_field) in (None, ""):
                raise PromptError(missing(label_field, row.fields))
            prompt = fields.prompt(row.fields)
        except PromptError as error:
            rows.skipped.append(f"{row.place}: {error}")
            continue
        rows.prompts.append(prompt)
        rows.targets.append(row.fields[label_field])
    if not rows.prompts:
        reason = rows.skipped[0] if rows.skipped else "it has no rows"
        raise ConfigError(f"{option} {path} has no usable row ({reason}); see --text-field and --label-field.")
    return rows
