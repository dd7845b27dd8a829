from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vllm_cls.errors import ConfigError
from vllm_cls.jobs.rows import PromptFields
from vllm_cls.jobs.training import TrainingRows, read_labels, read_training_rows

from .files import write


def test_rows_without_text_or_label_are_left_out_and_said(tmp_path: Path) -> None:
    lines = '{"text": "a", "label": 0}\nbroken\n{"text": "b"}\n{"text": "", "label": 1}\n{"text": "c", "label": "x"}\n'
    rows = read_training_rows(str(write(tmp_path / "in.jsonl", lines)), PromptFields(), "label")
    assert [prompt["prompt"] for prompt in rows.prompts] == ["a", "c"]
    assert rows.targets == [0, "x"]
    assert [each.split(": ")[0].rsplit(" ", 1)[1] for each in rows.skipped] == ["2", "3", "4"]
    assert "no field 'label'" in rows.skipped[1]


def test_a_file_without_usable_rows_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", "text,class\na,b\n")
    with pytest.raises(ConfigError, match=r"in\.csv has no usable row.*no field 'label'.*--label-field"):
        read_training_rows(str(path), PromptFields(), "label")


def rows_with(values: list[Any]) -> TrainingRows:
    return TrainingRows([{}] * len(values), values, [], [f"row {number}" for number in range(len(values))])


@pytest.mark.parametrize(
    ("values", "problem_type", "names"),
    [
        (["b", " a", "a ", "B"], None, ["B", "a", "b"]),
        ([10, 9, "2", "b"], None, ["2", "9", "10", "b"]),
        ([1.0, 0.0, "1"], None, ["0", "1"]),  # as a table writes whole numbers where some are missing
        ([-1, 0.5, 1], None, ["-1", "0.5", "1"]),
        ([True, False], None, ["False", "True"]),
        ([["b", "a"], "c", []], "multi_label_classification", ["a", "b", "c"]),
        (["10|9", "2"], "multi_label_classification", ["2", "9", "10"]),
        ([[2, 0], [1]], "multi_label_classification", ["0", "1", "2"]),
        ([[0], [1]], "multi_label_classification", ["0", "1"]),
        ([[0, 1], [1], [0]], "multi_label_classification", ["0", "1"]),
        ([[0, 2], [1], [2]], "multi_label_classification", ["0", "1", "2"]),
        ([[0, 1], [1, 1], []], "multi_label_classification", ["LABEL_0", "LABEL_1"]),
        ([1, 2.5], "regression", ["value"]),
    ],
)
def test_names_are_those_that_occur(values: list[Any], problem_type: str | None, names: list[str]) -> None:
    assert read_labels(rows_with(values), (), problem_type).names == names


def test_nan_is_no_label(tmp_path: Path) -> None:
    """What a table of floats has in place of null."""
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": [1.0, float("nan"), 0.0]}), path)
    rows = read_training_rows(str(path), PromptFields(), "label")
    assert rows.targets == [1.0, 0.0] and "row 2: the field 'label' is null" in rows.skipped[0]
    assert read_labels(rows, (), None).targets == [1, 0]
