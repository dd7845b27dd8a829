from __future__ import annotations

import math
from typing import Any

import pytest

from vllm_cls.errors import ConfigError
from vllm_cls.jobs.results.result_columns import KeptFields, ResultColumns
from vllm_cls.jobs.score import ScoreColumns
from vllm_cls.outputs import ClassificationOutput, ClassificationRequestOutput

LABELS = {0: "a", 1: "b", 2: "c"}


def answer(probs: list[float], logits: list[float] | None = None) -> ClassificationRequestOutput:
    labels = dict(list(LABELS.items())[: len(probs)])
    return ClassificationRequestOutput("0", ClassificationOutput(probs, logits or [], labels), [1])


@pytest.mark.parametrize(
    ("options", "probs", "expected"),
    [
        ({}, [0.2, 0.5, 0.3], {"label": "b", "score": 0.5, "probs": [0.2, 0.5, 0.3]}),
        ({}, [0.8], {"label": None, "score": 0.8, "probs": [0.8]}),
        (
            {"top_k": 2, "scores": True},
            [0.2, 0.5, 0.3],
            {
                "label": "b",
                "score": 0.5,
                "probs": [0.2, 0.5, 0.3],
                "top_k": [{"label": "b", "score": 0.5}, {"label": "c", "score": 0.3}],
                "scores": {"a": 0.2, "b": 0.5, "c": 0.3},
            },
        ),
        ({"logits": True}, [0.2, 0.8], {"label": "b", "score": 0.8, "probs": [0.2, 0.8], "logits": [7.0, 8.0]}),
        ({"use_activation": False}, [-1.0, 2.5], {"label": "b", "score": None, "logits": [-1.0, 2.5]}),
        (
            {"problem_type": "multi_label_classification"},
            [0.5, 0.1, 0.9],
            {"labels": ["a", "c"], "probs": [0.5, 0.1, 0.9]},
        ),
        (
            {"problem_type": "multi_label_classification", "threshold": 0.95},
            [0.5, 0.1, 0.9],
            {"labels": [], "probs": [0.5, 0.1, 0.9]},
        ),
        (
            {"problem_type": "multi_label_classification", "use_activation": False},
            [0.5, -2.0],
            {"labels": None, "logits": [0.5, -2.0]},
        ),
        ({"problem_type": "regression"}, [3.25], {"value": 3.25}),
        ({"problem_type": "regression", "logits": True}, [3.0, 4.0], {"value": [3.0, 4.0], "logits": [7.0, 8.0]}),
    ],
)
def test_results_of_an_answer(options: dict[str, Any], probs: list[float], expected: dict[str, Any]) -> None:
    columns = ResultColumns(LABELS, **options)
    found = columns.row(answer(probs, [7.0, 8.0, 9.0][: len(probs)]))
    assert found == expected
    assert list(found) == list(expected) == list(columns.empty())
    assert set(columns.empty().values()) == {None}


def test_the_ends_of_what_a_threshold_may_be() -> None:
    of = {threshold: ResultColumns(LABELS, "multi_label_classification", threshold).row for threshold in (0, 1)}
    assert of[0](answer([0.0, 0.5, 1.0]))["labels"] == ["a", "b", "c"]
    assert of[1](answer([0.0, 0.5, 1.0]))["labels"] == ["c"]


@pytest.mark.parametrize(
    ("problem_type", "labels", "types"),
    [
        ("regression", 3, {"value": list[float]}),
        ("regression", 1, {"value": float}),
        ("multi_label_classification", 3, {"labels": list[str], "probs": list[float]}),
        (None, 3, {"label": str | None, "score": float, "probs": list[float]}),
    ],
)
def test_the_types_of_the_columns(problem_type: Any, labels: int, types: dict[str, Any]) -> None:
    assert ResultColumns({index: LABELS[index] for index in range(labels)}, problem_type).types == types


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification", None])
def test_a_row_of_a_pair_has_the_score_alone(problem_type: Any) -> None:
    columns = ScoreColumns({0: "a"}, problem_type)
    assert columns.types == {"score": float}
    assert columns.row(answer([0.25])) == {"score": 0.25}


def test_more_labels_than_there_are_is_all_of_them() -> None:
    assert len(ResultColumns(LABELS, top_k=9).row(answer([0.5, 0.3, 0.2]))["top_k"]) == 3


def test_numbers_that_are_not_finite_are_no_result() -> None:
    with pytest.raises(ValueError, match="not finite"):
        ResultColumns(LABELS).row(answer([math.nan, 1.0]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"threshold": -0.1}, "threshold=-0.1"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": 1, "use_activation": False}, "top_k gives probabilities"),
        ({"scores": True, "problem_type": "regression"}, "this model is a regression"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ResultColumns(LABELS, **options)


def test_fields_with_the_name_of_a_result_are_kept_under_another() -> None:
    kept = KeptFields("all", ["label", "error"])
    assert kept.output_fields({"text": "a"}) == {"text": "a"}
    assert kept.output_fields({"text": "a", "label": 1, "error": None}) == {
        "text": "a",
        "input_label": 1,
        "input_error": None,
    }
    assert kept.output_fields({"label": 1, "input_label": 2}) == {"input_input_label": 1, "input_label": 2}
    assert kept.renamed["error"] == "input_error"
    assert KeptFields("all", ["label", "input_label"]).output_fields({"label": 1}) == {"input_input_label": 1}
    of_heads = KeptFields("all", ["label", "input_label"])  # a head may be called "input"
    assert of_heads.output_fields({"label": 1, "input_label": 2}) == {
        "input_input_label": 1,
        "input_input_input_label": 2,
    }


def test_the_columns_of_a_table_name_the_kept_fields_for_every_row() -> None:
    kept = KeptFields("all", ["label"])
    assert kept.mapping(["label", "input_label"]) == {"label": "input_input_label", "input_label": "input_label"}
    assert kept.output_fields({"label": 1}) == {"input_input_label": 1}


def test_fields_are_kept_by_name() -> None:
    row = {"a": 1, "b": 2, "c": 3}
    assert KeptFields("none", []).output_fields(row) == KeptFields([], []).output_fields(row) == {}
    assert KeptFields("c, a", []).output_fields(row) == {"c": 3, "a": 1}
    kept = KeptFields(["b", "d"], ["b"])
    assert kept.output_fields(row) == {"input_b": 2}
    assert kept.never_seen == ["d"]
    assert KeptFields("c,a", []).mapping(["a", "b", "c"]) == {"c": "c", "a": "a"}
