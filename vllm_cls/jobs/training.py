"""Labelled rows for `--train` and `--calibrate`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, PromptError, nearest
from ..parsing.labels import (
    SEPARATORS,
    entries_of,
    is_missing,
    is_number,
    json_list,
    label_column,
    listed,
    number_of,
    text_of,
)
from .formats.files import find_sources
from .formats.readers import read_rows
from .rows import PromptFields, missing

MULTI_LABEL = "multi_label_classification"
_BITS = {"0", "1", "True", "False"}


@dataclass(frozen=True)
class TrainingRows:
    """Prompts with their labels as the file has them, and why rows were left out (`skipped`, one line each).

    Args:
        positions: where each row is in its file.
        notes: messages on the file.
    """

    prompts: list[dict[str, Any]]
    targets: list[Any]
    skipped: list[str]
    positions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Labels:
    """The labels of rows, read.

    Args:
        names: of the labels, in the order of their indices.
        targets: a row's index (of a label alone, 1 where it is true and 0 where not), its 0 or 1 for each label
            (multi-label), or its number (regression).
        notes: messages on how the column was read.
    """

    names: list[str]
    targets: list[Any]
    notes: list[str]


def read_training_rows(
    path: str, fields: PromptFields, label_field: str, option: str = "--train", problem_type: str | None = None
) -> TrainingRows:
    """The usable rows of a file; a row without text or label is skipped with a message.

    Args:
        option: that named the file, for errors.
        problem_type: a row of a multi-label problem may have no label: an empty list or cell.

    Raises:
        ConfigError: no row is usable.
        JobError: the file cannot be read.
    """
    rows = TrainingRows([], [], [])
    for row in read_rows(find_sources(path), rows.notes):
        try:
            if row.error is not None:
                raise PromptError(row.error)
            _check_label(row.fields, label_field, problem_type)
            prompt = fields.prompt(row.fields, row.folder)
        except PromptError as error:
            rows.skipped.append(f"{row.place}: {error}")
            continue
        rows.prompts.append(prompt)
        rows.targets.append(row.fields[label_field])
        rows.positions.append(row.place)
    if not rows.prompts:
        reason = rows.skipped[0] if rows.skipped else "it has no rows"
        raise ConfigError(f"{option} {path} has no usable row ({reason}); see --text-field and --label-field.")
    return rows


def _check_label(fields: dict[str, Any], name: str, problem_type: str | None) -> None:
    if name not in fields:
        raise PromptError(missing(name, fields))
    value = fields[name]
    if is_missing(value):
        raise PromptError(f"the field {name!r} is null")
    if isinstance(value, str) and not value.strip() and problem_type != MULTI_LABEL:
        raise PromptError(f"the field {name!r} is empty")


def read_labels(
    rows: TrainingRows,
    names: Sequence[str],
    problem_type: str | None,
    option: str = "--train",
    named_by: str = "--labels",
) -> Labels:
    """What the labels of rows mean, decided over all of them.

    Args:
        names: of the labels; empty to take those that occur, numbers in their order before words in theirs.
        problem_type: as in transformers; None is single-label.
        option: that named the file, for errors.
        named_by: what gave the names, for errors.

    Raises:
        ConfigError: a row has a label that is none; the message names the row.
    """
    known = list(names) or _names_of(rows.targets, problem_type, option)
    column = label_column(known, problem_type)
    interpretations = [column.add(value) for value in rows.targets]
    found = [each[column.chosen] for each in interpretations]
    for value, gold, place in zip(rows.targets, found, rows.positions, strict=True):
        if gold is None:
            whose = named_by if names else "the labels of the other rows"
            why = _why_not_vector(value, known) if column.vectors else _why_not(value, known, problem_type, whose)
            read = "".join(f" Note: {note}." for note in column.notes())
            raise ConfigError(f"{option}{why} ({place}).{_near(value, known)}{read}")
    targets: list[Any] = found
    if problem_type == MULTI_LABEL:
        targets = [[int(index in gold) for index in range(len(known))] for gold in targets]
    notes = column.notes() if names else _about_case(known)
    return Labels(known, targets, notes)


def _why_not_vector(value: Any, names: Sequence[str]) -> str:
    """Why a value is not a vector of this length."""
    entries = entries_of(value, lambda text: re.split(f"[{''.join(SEPARATORS)}]", text)) or []
    why = "which are not all 0 or 1" if len(entries) == len(names) else f"whose length is {len(entries)}"
    rule = f"the other rows are vectors of {len(names)} labels, with a 0 or 1 for each of them"
    return f" has the labels {_shown(value)}, {why}; {rule}"


def _why_not(value: Any, names: Sequence[str], problem_type: str | None, whose: str) -> str:
    """Why a value is no label of the `names` that `whose` are."""
    shown = _shown(value)
    several = listed(value) if not isinstance(value, str) else json_list(value.strip())
    if problem_type == "regression":
        return f": for regression every label must be a number, and one is {shown}"
    if several is not None and problem_type != MULTI_LABEL:
        return f": a label is the list {shown}; several labels of a row are --problem-type {MULTI_LABEL}"
    if len(names) == 1 and problem_type != MULTI_LABEL:
        other = f"{names[0]!r} or 1 is true of this head's one label, and 0 or a single other value says that it is not"
        return f": {other}; there is {shown}, too"
    clause = f"which {whose} ({', '.join(names)}) {'does' if whose.startswith('--') else 'do'} not name"
    if problem_type != MULTI_LABEL:
        return f" has the label {shown}, {clause}"
    return f" has the labels {shown}, {clause}, and which are no 0 or 1 for each of them"


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:59] + "…"


def _near(value: Any, names: Sequence[str]) -> str:
    return nearest(value.strip(), names) if isinstance(value, str) else ""


def _names_of(values: Iterable[Any], problem_type: str | None, option: str) -> list[str]:
    """The names of labels that occur; of rows that are a 0 or 1 for each label, those that transformers would give."""
    if problem_type == "regression":
        return ["value"]
    if problem_type != MULTI_LABEL:
        texts = [text_of(value) for value in values if not isinstance(value, str) or json_list(value.strip()) is None]
        return _sorted(text for text in texts if text is not None)
    values = list(values)
    separator = _separator(values, option)
    rows = [entries_of(value, lambda text: text.split(separator) if separator else [text]) or [] for value in values]
    found = [[text for each in row if (text := text_of(each)) is not None] for row in rows]
    found = [row for row in found if row]
    if not found:
        raise ConfigError(f"{option}: no row has a label.")
    if length := _vector_length(found):
        return [f"LABEL_{index}" for index in range(length)]
    return _sorted({text for row in found for text in row})


def _vector_length(rows: Sequence[Sequence[str]]) -> int | None:
    """The length of the vectors of 0 and 1 that rows are; None where they are lists of labels.

    If only most of them are vectors, one must show that they are no lists: these hold no label twice.
    """
    vectors = [row for row in rows if len(row) > 1 and set(row) <= _BITS]
    if not vectors:
        return None
    ((length, count),) = Counter(map(len, vectors)).most_common(1)
    most = 2 * count > len(rows) and any(len(set(row)) < length == len(row) for row in vectors)
    return length if most or count == len(rows) else None


def _separator(values: Iterable[Any], option: str) -> str | None:
    """The separator of labels in cells: the one of the usual ones that occurs.

    Raises:
        ConfigError: several occur, so labels cannot be told from parts of names.
    """
    cells = [value for value in values if isinstance(value, str) and json_list(value.strip()) is None]
    found = [each for each in SEPARATORS if any(each in cell for cell in cells)]
    if len(found) > 1:
        shown = " and ".join(map(repr, found))
        raise ConfigError(
            f"{option}: labels with {shown} in them; which of these separates labels is not clear. Name the labels with "
            "--labels, or write JSON lists."
        )
    return found[0] if found else None


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(set(names), key=lambda name: (not is_number(name), number_of(name) if is_number(name) else 0, name))


def _about_case(names: Sequence[str]) -> list[str]:
    """A message on names that differ in upper and lower case only."""
    first: dict[str, str] = {}
    notes = []
    for name in names:
        other = first.setdefault(name.casefold(), name)
        if other != name:
            notes.append(f"the labels {other!r} and {name!r} differ in upper and lower case only, and are two labels")
    return notes
