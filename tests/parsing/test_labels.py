"""The one reader of labels: what a column means, whichever way it is written, decided over all of it."""

from __future__ import annotations

import decimal
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vllm_cls.evaluation import Tally
from vllm_cls.parsing.labels import label_column

from ..evaluation import evaluate

MULTI = "multi_label_classification"
STARS = ["1", "2", "3", "4", "5"]
ABC = ["a", "b", "c"]


def read(names: list[str], values: list[Any], problem_type: str | None = None) -> list[Any]:
    column = label_column(names, problem_type)
    interpretations = [column.add(value) for value in values]
    return [each[column.chosen] for each in interpretations]


@pytest.mark.parametrize(
    ("values", "indices"),
    [
        ([1, 2, 3, 4, 5], [0, 1, 2, 3, 4]),
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        ([4, 3, 2, 1, 0], [4, 3, 2, 1, 0]),  # in whatever order
        (["1", "5"], [0, 4]),
        (["1", "0"], [1, 0]),
        ([1.0, 4.0, 5.0], [0, 3, 4]),
        (["1.0", "0.0"], [1, 0]),
        ([2, 3], [1, 2]),  # nothing says that they are no names
        ([0, 1, 99, -1], [0, 1, None, None]),  # neither tells of the others
        ([0, 1, 5], [None, 0, 4]),  # a contradiction: names
        ([0, 5, 0, 1, "x", None], [0, None, 0, 1, None, None]),  # one that fewer rows are against: indices
        ([5, 1, 0, 5], [4, 0, None, 4]),
        ([True, False], [1, 0]),
        ([0, None, math.nan, "", "none"], [0, None, None, None, None]),
    ],
)
def test_numbers_are_names_unless_one_is_an_index_only(values: list[Any], indices: list[int | None]) -> None:
    assert read(STARS, values) == indices


@pytest.mark.parametrize(
    ("names", "values", "indices"),
    [
        (ABC, ["a", 1, "2", 2.0, " c "], [0, 1, 2, 2, 2]),
        (ABC, [np.int64(2), np.float32(1), np.str_("a"), np.bool_(True)], [2, 1, 0, 1]),
        (ABC, [decimal.Decimal("2.00"), b"a", b" b"], [2, 0, 1]),
        (ABC, ["A", "d", 3, -1, 1.5, "²", ["a"], {"a": 1}, [0, 1, 0]], [None] * 9),
        (["-1", "0", "1"], [-1, 0, 1, "-1"], [0, 1, 2, 0]),
        (["-1", "0", "1"], [0, 1, 2], [0, 1, 2]),
        (["1.0", "1.5", "2.0"], [1.0, 1.5, 2.0, "2.0"], [0, 1, 2, 2]),
        (["False", "True"], [True, "true", "FALSE", False, 1, 0], [1, 1, 0, 0, 1, 0]),
        (["1", "0"], [True, False, 1], [0, 1, 0]),
        (["007", "7"], ["007", "7", 7], [0, 1, 1]),
    ],
)
def test_how_a_label_is_written(names: list[str], values: list[Any], indices: list[int | None]) -> None:
    assert read(names, values) == indices


@pytest.mark.parametrize("row", [{"label": pa.array([2], pa.int8())}, {"label": pa.array(["c"]).dictionary_encode()}])
def test_values_of_parquet(row: dict[str, pa.Array]) -> None:
    assert read(ABC, row["label"].to_pylist()) == [2]


def sets(*rows: str | None) -> list[frozenset[int] | None]:
    return [None if row is None else frozenset("abc".index(each) for each in row) for row in rows]


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ([[1, 0, 1], [0, 1, 0], [0, 0, 0]], sets("ac", "b", "")),
        ([[True, False, True]], sets("ac")),
        ([[1.0, 0.0, 1.0], (1, 1, 1), np.array([0, 1, 1])], sets("ac", "abc", "bc")),
        (["1,0,1", "0,0,1", "[1, 0, 1]"], sets("ac", "c", "ac")),
        ([["a", "c"], ["b"], [], "", "a"], sets("ac", "b", "", "", "a")),
        (["a,c", "b", " c , a ", ""], sets("ac", "b", "ac", "")),
        (["a;c", "a|b", "a;b;c"], sets("ac", "ab", "abc")),
        (['["a", "c"]', "[]", '["b"]'], sets("ac", "", "b")),
        ([[0, 2], [1], [0]], sets("ac", "b", "a")),
        ([[0, 1], [1], []], sets("ab", "b", "")),  # of two entries each
        (["0,2", "1", 2], sets("ac", "b", "c")),
        ([["a", 2], "1"], sets("ac", "b")),
        ([None, ["a", None], ["a", "x"], {"a": 1}, [["a"]], "a,x", ["a"]], sets(*[None] * 6, "a")),
        ([[1, 0, 1], ["a"], [0, 2], []], sets("ac", None, None, "")),  # 0 and 1 again: no lists of labels
        ([[1, 0, 1, 0], [0, 1]], sets(None, "ab")),  # a vector of another model's labels
    ],
)
def test_rows_of_several_labels(values: list[Any], rows: list[frozenset[int] | None]) -> None:
    assert read(ABC, values, MULTI) == rows


@pytest.mark.parametrize(
    ("names", "values", "rows"),
    [
        (["x", "y"], [[0, 1], [1, 0]], [{1}, {0}]),
        (["x", "y"], [[0, 1], [1, 1]], [{1}, {0, 1}]),
        (["x", "y"], [[0, 1], [1], []], [{0, 1}, {1}, set()]),
        (["x"], [[1], [0]], [{0}, set()]),
        (["x"], ["1", "0"], [{0}, set()]),
        (["x"], [["x"], []], [{0}, set()]),
        (STARS, [[1, 5], [2]], [{0, 4}, {1}]),
        (STARS, [[0, 4], [2]], [{0, 4}, {2}]),
        (STARS, [[0, 4], [2], [5, 1], [0]], [{0, 4}, {2}, None, {0}]),
        (STARS, [[0, 4], [2], [5, 1]], [None, {1}, {4, 0}]),
        (STARS, [[0, 5], [0, 5], [5, 1]], [None, None, {4, 0}]),  # what is missed both ways tells nothing
        (STARS, [[1, 0, 0, 0, 1], [0, 0, 0, 0, 0]], [{0, 4}, set()]),
        (["a, b", "c"], ["a, b", "c", "a, b;c"], [{0}, {1}, {0, 1}]),
    ],
)
def test_rows_of_other_labels(names: list[str], values: list[Any], rows: list[set[int]]) -> None:
    assert read(names, values, MULTI) == rows


@pytest.mark.parametrize(
    ("values", "golds"),
    [
        (["yes", "no", "yes"], [1, 0, 1]),
        ([1, 0, "yes", True, "0.0"], [1, 0, 1, 1, 0]),
        (["no", 1], [0, 1]),
        (["no", "yes", 0], [None, 1, 0]),  # 0 is what is not
        (["no", "yes", "maybe"], [None, 1, None]),
        (["no", "no"], [None, None]),  # nothing is yes
        ([0.5, None, "", []], [None] * 4),
        ([-1, 1], [0, 1]),
    ],
)
def test_one_label_alone(values: list[Any], golds: list[int | None]) -> None:
    assert read(["yes"], values) == golds


def test_numbers_of_a_regression() -> None:
    values = [1, "2.5", " 3 ", True, np.float32(0.5), decimal.Decimal("1.5"), "much", "1,5", None, math.inf, [1.0], ""]
    assert read(["x"], values, "regression") == [1.0, 2.5, 3.0, 1.0, 0.5, 1.5] + [None] * 6


def test_a_measurement_follows_the_whole_column() -> None:
    """Five stars as 0 to 4: the model is right on every row, and row by row 1 to 4 would be taken for names."""
    probs = np.eye(5).tolist()
    found = evaluate(probs, [0, 1, 2, 3, 4], dict(enumerate(STARS)))
    assert (found.rows, found.accuracy) == (5, 1.0)
    assert found.notes == ["the true labels are read as indices, from 0 on, since '0' is no label's name"]
    found = evaluate(probs, [1, 2, 3, 4, 5], dict(enumerate(STARS)))
    assert (found.rows, found.accuracy, found.notes) == (5, 1.0, [])
    found = evaluate(np.eye(3).tolist(), [[1, 0, 0], [0, 1, 0], [0, 0, 1]], dict(enumerate(ABC)), problem_type=MULTI)
    assert (found.rows, found.accuracy, found.macro_f1) == (3, 1.0, 1.0)
    found = evaluate([[0.9], [0.1]], ["yes", "no"], {0: "yes"})
    assert (found.rows, found.accuracy, found.notes) == (2, 1.0, ["the true label 'no' is read as: not 'yes'"])
    found = evaluate(probs, [0, 1, 2, 3, 5], dict(enumerate(STARS)))
    assert (found.unknown, found.unknown_labels, found.accuracy) == (1, ["0"], 0.25)
    assert found.notes == ["the true labels are read as names, since '5' is no index"]


def test_one_wrong_number_does_not_turn_indices_into_names() -> None:
    rows = [number % 5 for number in range(57)]
    probs = np.eye(5)[[*rows, 4, 0, 0]].tolist()
    found = evaluate(probs, [*rows, 5, None, "x"], dict(enumerate(STARS)))
    assert (found.rows, found.unknown, found.accuracy) == (57, 3, 1.0)
    assert found.unknown_labels == ["5", "None", "'x'"]
    (note,) = found.notes
    assert note.startswith("the true labels are read as indices, from 0 on, since '0' is no label's name; fewer rows")
    assert "'5', which is no index" in note
    found = evaluate(probs, [*(row + 1 for row in rows), 0, None, "x"], dict(enumerate(STARS)))
    assert (found.rows, found.unknown, found.accuracy) == (57, 3, 1.0)
    assert found.notes == ["the true labels are read as names, since '5' is no index"]


@pytest.mark.parametrize("problem_type", [None, MULTI])
def test_memory_does_not_grow_with_labels_that_are_none(problem_type: str | None) -> None:
    tally = Tally(dict(enumerate(STARS)), problem_type)
    for number in range(2000):
        tally.add([0.1] * 5, f"junk {number}")
        tally.add([0.1] * 5, [number, f"junk {number}"])
    held = repr([vars(each) for each in tally._interpretations] + [vars(tally._column)])
    assert "junk 1" in held and len(held) < 3000
    assert tally.metrics().unknown == 4000
