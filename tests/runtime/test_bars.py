"""`use_tqdm`: a bar on a terminal, what makes it where that is given, and nothing elsewhere."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_cls import LLM, ConfigError, PromptError, convert

from ..models import tiny

TEXTS = ["a b c", "d e", "f", "a b c"]


class Bar:
    """What tqdm would be told."""

    made: list[Bar] = []

    def __init__(self, **options: Any) -> None:
        self.options, self.n, self.closed = options, 0, False
        Bar.made.append(self)

    def update(self, count: int) -> None:
        assert count >= 0
        self.n += count

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def none_made() -> None:
    Bar.made.clear()


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(str(tiny.classifier("bert", tmp_path_factory.mktemp("bert"), num_labels=1)), device="cpu")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "call",
    [
        lambda llm, bar: llm.classify(TEXTS, use_tqdm=bar),
        lambda llm, bar: llm.encode(TEXTS, pooling_task="embed", use_tqdm=bar),
        lambda llm, bar: llm.embed(TEXTS, use_tqdm=bar),
        lambda llm, bar: llm.reward(TEXTS, use_tqdm=bar),
        lambda llm, bar: llm.score("a", TEXTS, use_tqdm=bar),
    ],
    ids=["classify", "encode", "embed", "reward", "score"],
)
def test_a_call_has_a_bar_of_its_prompts(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, call: Callable[[LLM, Any], Any]
) -> None:
    call(llm, Bar)
    (bar,) = Bar.made
    assert (bar.n, bar.closed) == (4, True)  # two of them are the same, and run once
    assert (bar.options["total"], bar.options["desc"]) == (4, "Processed prompts")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    call(llm, True)
    assert "Processed prompts: 100%" in terminal.getvalue() and "4/4" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    call(llm, False)
    assert terminal.getvalue() == ""


def test_one_prompt_and_a_pipe_have_none(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    llm.classify("a b c")
    llm.classify(["a b c"])
    assert terminal.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
    llm.classify(TEXTS)
    assert pipe.getvalue() == ""
    llm.classify("a b c", use_tqdm=Bar)
    assert [(bar.n, bar.closed) for bar in Bar.made] == [(1, True)]


def test_a_bar_is_closed_where_the_call_fails(llm: LLM) -> None:
    with pytest.raises(PromptError):
        llm.classify(["a", "b c " * 1000], use_tqdm=Bar)
    assert [(bar.n, bar.closed) for bar in Bar.made] == [(0, True)]


def test_fitting_a_head_has_a_bar(tmp_path: Path) -> None:
    source = tiny.base_model("bert", tmp_path / "bert")
    train = tmp_path / "train.jsonl"
    rows = [{"text": f"{word} {i}", "label": word} for i in range(8) for word in ("a", "b")]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = tmp_path / "other.jsonl"
    other.write_text(train.read_text())
    convert(str(source), tmp_path / "out", head="fit", train=str(train), calibrate=str(other), use_tqdm=Bar)
    assert [(bar.options["desc"], bar.n, bar.closed) for bar in Bar.made] == [
        ("States of training rows", 16, True),
        ("Logits of calibration rows", 16, True),
    ]


def test_what_makes_no_bar_is_refused(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="use_tqdm='x' is True, False, or a function"):
        llm.classify(TEXTS, use_tqdm="x")  # type: ignore[arg-type]
