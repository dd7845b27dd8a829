"""Reads a column of true labels, for metrics, fitting and calibration alike.

What a value means can depend on the others: 1 is the label "1" where all numbers are names, and the second label where
there is a 0, too, and no label is called so. So a value is read in every possible interpretation, and the whole column
decides between them. Memory does not grow with the rows. It imports nothing heavy.
"""

from __future__ import annotations

import abc
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeVar

Gold = int | frozenset[int] | float
"""A true label: an index, the indices of a multi-label row, or a regression's number."""

Found = TypeVar("Found", int, frozenset[int])

SEPARATORS = (",", ";", "|")
_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
_BITS = {"false": "0", "true": "1", "0": "0", "1": "1"}


class LabelColumn(abc.ABC):
    """A column of true labels, to which its values are added one by one.

    `interpretations` is how many there are.
    """

    interpretations: int = 1

    @property
    def chosen(self) -> int:
        """The index of the interpretation that fits the values added so far."""
        return 0

    @abc.abstractmethod
    def add(self, value: Any) -> Sequence[Gold | None]:
        """A value in each interpretation; None where it is no label."""

    @property
    def vectors(self) -> bool:
        """Whether the chosen interpretation is a 0 or 1 for each label."""
        return False

    def notes(self) -> list[str]:
        """Messages on the chosen interpretation."""
        return []


def label_column(names: Sequence[str], problem_type: str | None) -> LabelColumn:
    """The reader of a column.

    Args:
        names: of the labels, by their indices. One label alone is true or not: its indices are 0 (it is not) and 1.
        problem_type: as in transformers; None is single-label.
    """
    if problem_type == "regression":
        return _NumberColumn()
    if problem_type == "multi_label_classification":
        return _MultiLabel(names)
    return _Binary(names[0]) if len(names) == 1 else _Single(names)


class _NumberColumn(LabelColumn):
    """The values of a regression."""

    def add(self, value: Any) -> Sequence[Gold | None]:
        return (number_of(value),)


class _Single(LabelColumn):
    """A label a row, by name or by index."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = _Names(names)
        self.interpretations = self._names.interpretations

    def add(self, value: Any) -> Sequence[Gold | None]:
        text = text_of(value)
        return (None,) * self.interpretations if text is None else self._names.count(self._names.see(text))

    @property
    def chosen(self) -> int:
        return self._names.chosen

    def notes(self) -> list[str]:
        return self._names.notes()


class _Binary(LabelColumn):
    """One label that is true or not: its name or 1, against 0 or the one other value that occurs."""

    interpretations = 2  # with that other value, and without

    def __init__(self, name: str) -> None:
        self._name = name.strip()
        self._other = ""
        self._seen: set[int] = set()
        self._others = False

    def add(self, value: Any) -> Sequence[Gold | None]:
        text = text_of(value)
        if text is None:
            return (None, None)
        bit = _BITS.get(_plain(text), "1" if text == self._name else None)
        if bit is not None:
            self._seen.add(int(bit))
            return (int(bit), int(bit))
        self._other = self._other or text
        self._others |= text != self._other
        return (None, 0 if text == self._other else None)

    @property
    def chosen(self) -> int:
        return int(bool(self._other) and not self._others and self._seen == {1})

    def notes(self) -> list[str]:
        return [f"the true label {self._other!r} is read as: not {self._name!r}"] if self.chosen else []


class _MultiLabel(LabelColumn):
    """Any number of labels a row: a list of names or indices, or a 0 or 1 for each label."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self._count = _Names(names), len(names)
        self.interpretations = 1 + self._names.interpretations
        self._only_vector = self._only_list = self._vector = False

    def add(self, value: Any) -> Sequence[Gold | None]:
        entries = entries_of(value, self._split)
        texts = None if entries is None else [text_of(each) for each in entries]
        if texts is None or not all(texts):
            return (None,) * self.interpretations
        known = [text for text in texts if text is not None]
        vector, lists = self._as_vector(known), self._as_list(known)
        if known and vector is not None:
            self._vector = True
            self._only_vector |= not any(each is not None for each in lists)
        elif any(each is not None for each in lists) and (known or listed(value) is not None):
            self._only_list = True
        return (vector, *lists)

    def _as_vector(self, texts: Sequence[str]) -> frozenset[int] | None:
        bits = [_BITS.get(_plain(text)) for text in texts]
        if bits and (len(bits) != self._count or None in bits):
            return None
        return frozenset(index for index, bit in enumerate(bits) if bit == "1")

    def _as_list(self, texts: Sequence[str]) -> Sequence[frozenset[int] | None]:
        """As the labels that a row has, by names and by indices; a number twice is no list of indices."""
        numbers = [_plain(text) for text in texts if is_number(_plain(text))]
        if len(set(numbers)) < len(numbers):
            return (None,) * self._names.interpretations
        interpretations: list[frozenset[int] | None] = []
        for found in zip(*map(self._names.see, texts), strict=True) if texts else [()] * self._names.interpretations:
            known = [each for each in found if each is not None]
            interpretations.append(frozenset(known) if len(known) == len(found) else None)
        return self._names.count(interpretations)

    def _split(self, text: str) -> list[str]:
        """A cell's labels: at the first separator that parts it into known ones."""
        if self._known(text):
            return [text]
        for separator in SEPARATORS:
            if separator in text and all(map(self._known, parts := _parts(text, separator))):
                return parts
        return _parts(text, SEPARATORS[0])

    def _known(self, text: str) -> bool:
        return text in _BITS or any(each is not None for each in self._names.find(text))

    @property
    def chosen(self) -> int:
        vectors = self._only_vector or (self._vector and not self._only_list)
        return 0 if vectors else 1 + self._names.chosen

    @property
    def vectors(self) -> bool:
        return self.chosen == 0

    def notes(self) -> list[str]:
        return self._names.notes() if self.chosen else []


class _Names:
    """The names of labels, and whether numbers in a column are names or indices, decided by those that can be only one.

    Where some are only names and others only indices, the interpretation that misses fewer rows wins; names on a tie.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._count = len(names)
        self._index = {name.strip(): index for index, name in enumerate(names)}
        for index, name in enumerate(names):
            self._index.setdefault(_plain(name.strip()), index)
        self.interpretations = 2 if any(map(is_number, self._index)) else 1
        self._only_name = self._only_index = ""
        self._lead = 0  # rows that are labels as indices only, less those that are labels as names only

    def find(self, text: str) -> Sequence[int | None]:
        """The index of a label in each interpretation: numbers as names, and as indices."""
        bare = _plain(text)
        digits = _BITS.get(bare, bare)
        name = next((self._index[each] for each in (text, bare, digits) if each in self._index), None)
        index = int(digits) if digits.isascii() and digits.isdigit() and int(digits) < self._count else None
        if self.interpretations == 1:
            return (index if name is None else name,)
        return (name, index) if is_number(digits) else (name, name)

    def see(self, text: str) -> Sequence[int | None]:
        """As `find`, of a label that a row has."""
        found = self.find(text)
        if found[0] is None and found[-1] is not None:
            self._only_index = self._only_index or text
        elif found[-1] is None and found[0] is not None:
            self._only_name = self._only_name or text
        return found

    def count(self, row: Sequence[Found | None]) -> Sequence[Found | None]:
        """Count in which interpretations a whole row is known; returns the row."""
        self._lead += (row[0] is None) - (row[-1] is None)
        return row

    @property
    def chosen(self) -> int:
        return int(self._lead > 0 or (self._lead == 0 and bool(self._only_index) and not self._only_name))

    def notes(self) -> list[str]:
        if not self._only_index:
            return []
        if self.chosen:
            text = f"the true labels are read as indices, from 0 on, since {self._only_index!r} is no label's name"
            rarer = f"; fewer rows have such as {self._only_name!r}, which is no index" if self._only_name else ""
            return [text + rarer]
        return [f"the true labels are read as names, since {self._only_name!r} is no index"]


def text_of(value: Any) -> str | None:
    """A label as text, stripped; None for a missing value, a list or an object."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, Mapping) or listed(value) is not None:
        return None
    if hasattr(value, "item"):  # a scalar of numpy
        value = value.item()
    if is_missing(value):
        return None
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)  # whole numbers are floats in a table where some are missing
    return str(value)


def is_missing(value: Any) -> bool:
    """Whether there is no value: null, or NaN, with which tables say the same."""
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def is_number(text: str) -> bool:
    """Whether a label is written as a number."""
    return _NUMBER.fullmatch(text) is not None


def number_of(value: Any) -> float | None:
    """A finite number, or a text of one; None of anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def listed(value: Any) -> list[Any] | None:
    """The entries of a list, a set or an array; None of anything else."""
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    return list(value.tolist()) if getattr(value, "ndim", 0) >= 1 else None


def json_list(text: str) -> list[Any] | None:
    """The entries of a text that is a JSON list; None of any other."""
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def entries_of(value: Any, split: Callable[[str], list[str]]) -> list[Any] | None:
    """The labels of a multi-label row: of a list, a JSON list, or a cell that `split` parts; None where it is missing.

    An empty list or cell says that the row has none of the labels.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        text = value.strip()
        found = json_list(text)
        return found if found is not None else split(text) if text else []
    found = listed(value)
    if found is not None:
        return found
    return None if text_of(value) is None else [value]


def _plain(text: str) -> str:
    """The normal form of a label that is not exactly a name: "1.0" is 1, "True" is true."""
    if text.lower() in _BITS:
        return text.lower()
    whole, point, fraction = text.partition(".")
    return whole if point and is_number(text) and not fraction.strip("0") else text


def _parts(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]
