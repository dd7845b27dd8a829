from __future__ import annotations

from pathlib import Path

import pytest

from vllm_cls.errors import ConfigError
from vllm_cls.jobs.rows import PromptFields
from vllm_cls.jobs.training import read_training_rows

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
