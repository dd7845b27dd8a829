from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from vllm_cls.evaluation import BINS, LabelMetrics, Tally

from .evaluation import evaluate

LABELS = {0: "cat", 1: "dog", 2: "cow"}
PROBS = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]


def test_by_hand() -> None:
    found = evaluate(PROBS, ["cat", "dog", "dog", "dog"], LABELS)
    assert found.rows == 4
    assert found.accuracy == 0.75
    assert found.majority == 0.75
    assert found.majority_label == "dog"
    assert found.confusion == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert found.per_label == [
        LabelMetrics("cat", 0.5, 1.0, 2 / 3, 1),
        LabelMetrics("dog", 1.0, 2 / 3, 0.8, 3),
        LabelMetrics("cow", 0.0, 0.0, 0.0, 0),
    ]
    assert found.macro_f1 == pytest.approx((2 / 3 + 0.8) / 2)  # "cow" neither occurs nor is predicted
    assert found.log_loss == pytest.approx(-sum(map(math.log, (0.7, 0.8, 0.3, 0.5))) / 4)
    # four bins with a row each: 0.7 and 0.8 and 0.5 right, 0.6 wrong
    assert found.calibration_error == pytest.approx((0.3 + 0.2 + 0.6 + 0.5) / 4)


def random_rows(num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    probs = generator.dirichlet(np.full(num_labels, 0.7), 500)
    gold = np.where(generator.random(500) < 0.5, probs.argmax(1), generator.integers(0, num_labels, 500))
    return probs, gold


@pytest.mark.parametrize("num_labels", [2, 5])
def test_as_sklearn_has_it(num_labels: int) -> None:
    probs, gold = random_rows(num_labels)
    given = probs.argmax(1)
    found = evaluate(probs.tolist(), gold.tolist(), {i: f"label {i}" for i in range(num_labels)})
    assert found.accuracy == pytest.approx(sklearn_metrics.accuracy_score(gold, given))
    assert found.macro_f1 == pytest.approx(sklearn_metrics.f1_score(gold, given, average="macro"))
    assert found.log_loss == pytest.approx(sklearn_metrics.log_loss(gold, probs))
    assert found.confusion == sklearn_metrics.confusion_matrix(gold, given).tolist()
    each = sklearn_metrics.precision_recall_fscore_support(gold, given)
    assert [(m.precision, m.recall, m.f1, m.support) for m in found.per_label] == [
        pytest.approx(row) for row in zip(*each, strict=True)
    ]


def test_calibration_error_by_its_definition() -> None:
    probs, gold = random_rows(4)
    sure, right = probs.max(1), probs.argmax(1) == gold
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs(sure[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    found = evaluate(probs.tolist(), gold.tolist(), {i: str(i) for i in range(4)})
    assert found.calibration_error == pytest.approx(sum(gaps))


# Confidence, and whether it was right. Of 15 equal bins the second and third, the fourth and fifth, and the last two rows
# share one each (0.6 begins a bin, 1 is in the last): these differ in bins of any other number, or closed on the right.
SURE = [(0.59, True), (0.6, False), (0.65, True), (0.68, True), (0.73, False), (0.99, True), (1.0, False)]
GAPS = (1 - 0.59) + (1.25 - 1) + (1.41 - 1) + (1.99 - 1)


def test_the_bins_of_the_calibration_error() -> None:
    two = evaluate([[1 - sure, sure] for sure, _ in SURE], [int(right) for _, right in SURE], {0: "a", 1: "b"})
    assert two.calibration_error == pytest.approx(GAPS / 7, abs=1e-12)
    alone = evaluate([[sure] for sure, _ in SURE], [int(right) for _, right in SURE], {0: "a"})
    assert alone.calibration_error == pytest.approx(GAPS / 7, abs=1e-12)
    doubt = evaluate([[1 - sure] for sure, _ in SURE], [int(not right) for _, right in SURE], {0: "a"})
    assert doubt.calibration_error == pytest.approx(GAPS / 7, abs=1e-12)
    labels = {i: f"label {i}" for i in range(14)}
    probs = [sure for sure, _ in SURE] + [1 - sure for sure, _ in SURE]
    gold = [f"label {i}" for i, (_, right) in enumerate(SURE) if right]
    gold += [f"label {i + 7}" for i, (_, right) in enumerate(SURE) if not right]
    several = evaluate([probs], [gold], labels, problem_type="multi_label_classification")
    assert several.calibration_error == pytest.approx(GAPS / 7, abs=1e-12)


@pytest.mark.parametrize(
    ("gold", "index"),
    [
        ("dog", 1),
        (" dog ", 1),
        (2, 2),
        ("2", 2),
        (2.0, 2),
        (True, 1),
        ("3", None),
        (-1, None),
        (1.5, None),
        (None, None),
        ("DOG", None),
        ("", None),
        (["dog"], None),
        ("²", None),
    ],
)
def test_true_labels_are_names_or_indices(gold: Any, index: int | None) -> None:
    tally = Tally(LABELS)
    assert tally.add([0.0, 0.0, 1.0], gold) == (index is not None)
    found = tally.metrics()
    assert (found.rows, found.unknown) == ((1, 0) if index is not None else (0, 1))
    if index is not None:
        assert [each.support for each in found.per_label] == [int(i == index) for i in range(3)]
    else:
        assert found.unknown_labels == [repr(gold)]
        assert found.accuracy is None


def test_a_number_that_is_a_name_is_the_name() -> None:
    stars = {0: "1", 1: "2", 2: "3"}
    assert evaluate([[1.0, 0.0, 0.0]] * 3, [1, "1", 1.0], stars).accuracy == 1.0


def test_unknown_labels_are_counted_and_the_first_few_named() -> None:
    found = evaluate([[1.0, 0.0, 0.0]] * 9, ["cat", *"abcdefga"], LABELS)
    assert (found.rows, found.unknown, found.accuracy) == (1, 8, 1.0)
    assert found.unknown_labels == ["'a'", "'b'", "'c'", "'d'", "'e'"]


def test_a_probability_of_zero_costs_much_but_not_everything() -> None:
    found = evaluate([[1.0, 0.0]], ["b"], {0: "a", 1: "b"})
    assert found.log_loss == pytest.approx(-math.log(1e-15))


def test_one_label_alone_is_yes_or_no() -> None:
    found = evaluate([[0.9], [0.2], [0.6], [0.4]], [1, "0", False, "spam"], {0: "spam"})
    assert found.accuracy == 0.5
    assert found.confusion == [[1, 1], [1, 1]]
    assert found.log_loss == pytest.approx(-sum(map(math.log, (0.9, 0.8, 0.4, 0.4))) / 4)


def test_several_labels_of_a_row() -> None:
    probs = [[0.9, 0.6, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.1], [0.8, 0.1, 0.8]]
    gold = [["cat", "dog"], "dog", [], '["cat", 1]']
    found = evaluate(probs, gold, LABELS, problem_type="multi_label_classification")
    truth = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]])
    given = np.array(probs) >= 0.5
    assert found.accuracy == 0.75
    assert found.macro_f1 == pytest.approx(sklearn_metrics.f1_score(truth, given, average="macro", zero_division=0))
    losses = [
        sklearn_metrics.log_loss(row, p, labels=[0, 1]) for row, p in zip(truth.T, np.array(probs).T, strict=True)
    ]
    assert found.log_loss == pytest.approx(np.mean(losses))
    assert found.confusion is None
    assert (found.majority, found.majority_label) == (0.5, "cat, dog")
    strict = evaluate(probs, gold, LABELS, problem_type="multi_label_classification", threshold=0.65)
    assert strict.accuracy == 0.5


def test_of_several_labels_each_is_calibrated_for_itself() -> None:
    found = evaluate(
        [[0.93, 0.17], [0.83, 0.63]],
        [["cat"], ["dog"]],
        {0: "cat", 1: "dog"},
        problem_type="multi_label_classification",
    )
    # Four yeses and noes: sure by 0.93 and right; by 0.83 twice, once right; by 0.63 and right.
    assert found.calibration_error == pytest.approx((1 - 0.93 + 2 * (0.83 - 0.5) + 1 - 0.63) / 4)


def test_a_label_as_probable_as_the_threshold_is_given() -> None:
    """As it is in results."""
    (label,) = evaluate(
        [[0.25], [0.24]], [["cat"], []], {0: "cat"}, problem_type="multi_label_classification", threshold=0.25
    ).per_label
    assert (label.precision, label.recall) == (1, 1)


@pytest.mark.parametrize(
    ("gold", "labels"),
    [
        ("cat,dog", {0, 1}),
        ("a, b", {3}),
        ("", set()),
        ('["dog"]', {1}),
        ([2, "cat"], {0, 2}),
        (1, {1}),
        ("[broken", None),
    ],
)
def test_several_labels_may_be_written_as_a_text(gold: Any, labels: set[int] | None) -> None:
    tally = Tally({**LABELS, 3: "a, b"}, "multi_label_classification")
    assert tally.add([0.1] * 4, gold) == (labels is not None)
    if labels is not None:
        assert [each.support for each in tally.metrics().per_label] == [int(i in labels) for i in range(4)]


def test_regression() -> None:
    generator = np.random.default_rng(0)
    gold = generator.normal(1e6, 2, 300)
    values = gold + generator.normal(0, 1, 300)
    found = evaluate(values[:, None].tolist(), gold.tolist(), {0: "LABEL_0"}, problem_type="regression")
    assert found.mse == pytest.approx(sklearn_metrics.mean_squared_error(gold, values))
    assert found.mae == pytest.approx(sklearn_metrics.mean_absolute_error(gold, values))
    assert found.r2 == pytest.approx(sklearn_metrics.r2_score(gold, values))
    assert found.baseline_mse == pytest.approx(gold.var())
    assert found.accuracy is None


def test_regression_without_numbers() -> None:
    found = evaluate([[1.0]] * 4, ["2.5", "much", None, float("nan")], {0: "x"}, problem_type="regression")
    assert (found.rows, found.unknown, found.mse, found.r2) == (1, 3, 2.25, None)


def test_nothing_measured_is_nothing_said() -> None:
    for problem_type in (None, "multi_label_classification", "regression"):
        found = evaluate([], [], {0: "a"} if problem_type == "regression" else LABELS, problem_type=problem_type)
        assert (found.rows, found.accuracy, found.mse) == (0, None, None)
