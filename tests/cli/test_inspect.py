from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from tests.jobs.fake import FakeLLM
from vllm_cls import ModelError

Run = Callable[..., Result]


def test_a_line_for_each_thing_known(run: Run) -> None:
    result = run("inspect", "my [model]")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "model            my [model]",
        "prompt template  –",
        "id2label         0 negative, 1 positive",
        "bytes            12.3 kB",
    ]
    assert FakeLLM.made[-1].closed


def test_as_json(run: Run) -> None:
    found = json.loads(run("inspect", "model", "--json").stdout)
    assert found == {
        "model": "model",
        "prompt_template": None,
        "id2label": {"0": "negative", "1": "positive"},
        "bytes": 12345,
    }


def test_a_model_without_a_head_can_be_looked_at(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("inspect", "model")
    assert FakeLLM.made[-1].options["convert"] == "auto"  # which opens a guard model as one
    made = FakeLLM.__init__

    def headless(self: FakeLLM, *args: Any, **options: Any) -> None:
        if options["convert"] == "auto":
            raise ModelError("it has no head.")
        made(self, *args, **options)

    monkeypatch.setattr(FakeLLM, "__init__", headless)
    assert run("inspect", "model").exit_code == 0
    assert FakeLLM.made[-1].options["convert"] == "none"
    run("inspect", "model", "--convert", "classify")
    assert FakeLLM.made[-1].options["convert"] == "classify"
