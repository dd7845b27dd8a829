from __future__ import annotations

from typing import Any

import pytest

from vllm_cls.errors import PromptError, nearest
from vllm_cls.jobs.rows import PromptFields

CHAT = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("fields", "row", "prompt"),
    [
        (PromptFields(), {"text": "a", "id": 1}, {"prompt": "a"}),
        (PromptFields("q", "a"), {"q": "x", "a": "y"}, {"prompt": "x", "text_pair": "y"}),
        (PromptFields(messages="chat"), {"chat": CHAT}, {"messages": CHAT}),
        (PromptFields(messages="chat"), {"chat": '[{"role": "user", "content": "Hello"}]'}, {"messages": CHAT}),
        (PromptFields(None), {"title": "a"}, {}),
    ],
)
def test_the_prompt_of_a_row(fields: PromptFields, row: dict[str, Any], prompt: dict[str, Any]) -> None:
    assert fields.prompt(row) == {**prompt, "fields": row}
    assert all(name in row for name in fields.names()) and len(fields.names()) == len(prompt)


@pytest.mark.parametrize(
    ("fields", "row", "says"),
    [
        (PromptFields(), {"txet": "a"}, r"no field 'text'; there is 'txet'. Did you mean 'txet'"),
        (PromptFields(), {}, "there is none"),
        (
            PromptFields(),
            {"text;label": "a", " note": "b"},
            "there is 'text;label', ' note'. It is a part of 'text;label'",
        ),
        (PromptFields(), {"text": None}, "'text' is null"),
        (PromptFields(), {"text": 5}, "not a text but a number"),
        (PromptFields(), {"text": ["a"]}, "not a text but a list"),
        (PromptFields(), {"text": " \n"}, "'text' is empty"),
        (PromptFields(), {"text": "ab\ud800"}, r"\\ud800, at character 3"),
        (PromptFields("text", "pair"), {"text": "a", "pair": ""}, "'pair' is empty"),
        (PromptFields(messages="chat"), {"chat": "hello"}, "not a JSON list"),
        (PromptFields(messages="chat"), {"chat": []}, "an empty list"),
        (PromptFields(messages="chat"), {"chat": ["hello"]}, "without 'role'"),
        (PromptFields(messages="chat"), {"chat": [*CHAT, {"content": "Hello"}]}, "without 'role'"),
        (PromptFields(messages="chat"), {"chat": [*CHAT, {"role": "user"}]}, "without 'role' and 'content'"),
    ],
)
def test_a_row_without_a_prompt_says_why(fields: PromptFields, row: dict[str, Any], says: str) -> None:
    with pytest.raises(PromptError, match=says):
        fields.prompt(row)


def test_a_hint_is_never_the_name_that_is_missed() -> None:
    assert nearest("text", ["text"]) == ""
    assert nearest("text", ["text", "texts"]) == " Did you mean 'texts'?"
