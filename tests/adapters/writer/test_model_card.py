"""The model card says how the head was made, whatever the labels and the template hold."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vllm_cls.adapters.heads.head_sources import vcls_head_sources
from vllm_cls.adapters.writer.model_card import model_card


def card(**changes: Any) -> str:
    values: dict[str, Any] = {
        "own_code": False, "task": "classify", "heads": [], "chat_template_prompt": False, "score_template": None,
        "example": ("your text",), "rendered": ("Review: your text\nIt is", None, True),
        "name": "reviews", "base_model": "Qwen/Qwen2-0.5B", "classifier_class": "Qwen2ForSequenceClassification",
        "native": True, "head_method": "tokens", "about_head": "Each label's score is a logit.", "reads_lm_head": True,
        "description": "Rows 17 and 42 of the LM head.",
        "report": {"accuracy": 0.94321, "majority": 0.5, "per_label": {"good": {"f1": 0.9}}}, "labels": ["bad", "good"],
        "problem_type": "single_label_classification", "pooling": "LAST", "prompt_template": "Review: {text}\nIt is",
        "command": "vcls convert Qwen/Qwen2-0.5B reviews --head tokens",
    }  # fmt: skip
    return model_card(**{**values, **changes})


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return [(m[2], m[3]) for m in re.finditer(r"^(`{3,})(\w*)\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)]


def test_it_says_what_there_is_to_say() -> None:
    text = card()
    assert front_matter(text) == {
        "library_name": "transformers", "pipeline_tag": "text-classification", "tags": ["vllm-cls"],
        "base_model": "Qwen/Qwen2-0.5B",
    }  # fmt: skip
    for part in (
        "# reviews", "Rows 17 and 42 of the LM head.", "the last token", "single_label_classification",
        "| 1 | `good` |",
        "| accuracy | 0.9432 |", "| per_label.good.f1 | 0.9 |", "vcls classify reviews", "transformers 5", "torch 2",
        "Each label's score is a logit.",
    ):  # fmt: skip
        assert part in text, part
    assert ("text", "Review: {text}\nIt is") in blocks(text)
    assert ("bash", "vcls convert Qwen/Qwen2-0.5B reviews --head tokens") in blocks(text)


def test_plain_transformers_is_promised_only_where_it_holds() -> None:
    native, own = card(), card(native=False)
    assert "import vllm_cls" not in native
    assert "import vllm_cls\nimport torch\n" in own and "With plain transformers" not in own


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("template", [None, "Review: {text}\nIt's \"", "{title}"])
def test_the_examples_are_python(native: bool, template: str | None) -> None:
    found = [code for language, code in blocks(card(native=native, prompt_template=template)) if language == "python"]
    assert len(found) == 2
    for code in found:
        ast.parse(code)


def test_a_random_head_is_called_what_it_is() -> None:
    text = card(head_method="random", about_head=vcls_head_sources()["random"].card, reads_lm_head=False)
    assert "mean nothing until it is trained" in text
    assert "Another wording of the prompt" in card() and "Another wording of the prompt" not in text


def test_what_is_unknown_is_left_out() -> None:
    text = card(report={}, labels=[], prompt_template=None, command=None, problem_type=None)
    assert "## Measurements" not in text and "## Prompt" not in text and "| index |" not in text
    assert "Nothing was measured" in text


@pytest.mark.parametrize("path", ["/home/me/secret/qwen", "../secret/qwen/", "C:\\secret\\qwen", "~/secret/qwen"])
def test_paths_of_the_machine_do_not_get_in(path: str) -> None:
    text = card(base_model=path)
    assert "secret" not in text and front_matter(text)["base_model"] == "qwen"


@given(st.text(), st.text(), st.lists(st.text(), max_size=3))
def test_any_text_stays_in_its_place(name: str, template: str, labels: list[str]) -> None:
    text = card(base_model=name, prompt_template=template, labels=labels, report={name: template})
    assert front_matter(text)["tags"] == ["vllm-cls"]
    table = text.split("| index | label |\n| --- | --- |\n")[1].split("\n\n")[0] if labels else ""
    assert len(table.splitlines()) == len(labels)
    if "\r" not in template:
        assert ("text", template) in blocks(text)
