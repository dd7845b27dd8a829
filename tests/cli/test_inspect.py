from __future__ import annotations

import json
from collections.abc import Callable

from click.testing import Result

from tests.jobs.fake import FakeLLM

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


def test_a_model_without_a_head_can_be_looked_at(run: Run) -> None:
    run("inspect", "model")
    assert FakeLLM.made[-1].options["convert"] == "none"
    run("inspect", "model", "--convert", "classify")
    assert FakeLLM.made[-1].options["convert"] == "classify"
