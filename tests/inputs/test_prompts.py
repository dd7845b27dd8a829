"""Prompts and templates."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_cls import ConfigError, PromptError
from vllm_cls.inputs.prompt_template import PromptTemplate
from vllm_cls.inputs.prompts import Prompt, is_single, parse, size


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("text", Prompt(text="text")),
        (("a", "b"), Prompt(text="a", text_pair="b")),
        ([1, 2], Prompt(token_ids=(1, 2))),
        ({"prompt": "a", "text_pair": "b"}, Prompt(text="a", text_pair="b")),
        ({"prompt_token_ids": [1]}, Prompt(token_ids=(1,))),
        ({"prompt": "a", "fields": {"x": 1}}, Prompt(text="a", fields={"x": 1})),
        ([{"role": "user", "content": "a"}], Prompt(messages=({"role": "user", "content": "a"},))),
        ({"prompt": "a", "multi_modal_data": None}, Prompt(text="a")),
        ({"prompt": "a", "text_pair": ""}, Prompt(text="a", text_pair="")),
        ({"prompt": ("a", "b"), "max_tokens_per_doc": 3}, Prompt(text="a", text_pair="b", max_tokens_per_doc=3)),
        ({"prompt": "a", "cache_salt": "s"}, Prompt(text="a", cache_salt="s")),
        ({"fields": {"x": "a"}}, Prompt(fields={"x": "a"})),
        (
            {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"x": 1}},
            Prompt(messages=({"role": "user", "content": "a"},), chat_template_kwargs={"x": 1}),
        ),
    ],
)
def test_forms(prompt: Any, expected: Prompt) -> None:
    assert parse(prompt) == expected
    assert is_single(prompt)


@pytest.mark.parametrize(
    "prompt",
    [None, 3, 1.5, b"bytes", [], [1, "a"], [True, False], ("a",), ("a", 1), {}, {"prompt": None}, {"text": "a"}, ["a", "b"],
     {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, {"prompt": [1], "text_pair": "b"},
     {"prompt": "a", "text_pair": 3}, {"prompt": "a", "multi_modal_data": 1},
     {"prompt": "a", "cache_salt": ""}, {"prompt": "a", "cache_salt": 3}, {"prompt_token_ids": "a"}, {"messages": "a"},
     {"prompt": "a", "chat_template_kwargs": {"x": 1}}, {"messages": [{"role": "a"}], "chat_template_kwargs": ["x"]},
     {"messages": [{"role": "a"}], "chat_template_kwargs": {"tokenize": True}}, {"prompt": "a", "max_tokens_per_doc": 3}],
)  # fmt: skip
def test_what_is_no_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(PromptError):
        parse(prompt)


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("abc", 3), ("", 0), ([7, 8], 2), (("ab", "c"), 3), ({"prompt": "ab", "text_pair": "c"}, 3), (None, 1), ([], 0),
     ({"prompt_token_ids": [7, 8, 9]}, 3), ([{"role": "user", "content": "abc"}], 7), ({"fields": {"x": "ab", "n": 3}}, 3)],
)  # fmt: skip
def test_how_long_a_prompt_is_roughly(prompt: Any, count: int) -> None:
    assert size(prompt) == count


@pytest.mark.parametrize(
    "prompts", [["a"], [("a", "b")], [[1]], [[{"role": "user", "content": "a"}]], [{"prompt": "a"}], []]
)
def test_several_prompts(prompts: Any) -> None:
    assert not is_single(prompts)


@given(st.text(max_size=30), st.integers(0, 30), st.sampled_from(["left", "right"]))
def test_cutting_keeps_one_end(text: str, limit: int, side: str) -> None:
    cut = Prompt(text=text).cut(limit, side).text
    assert cut is not None and len(cut) == min(limit, len(text))
    assert text.startswith(cut) if side == "right" else text.endswith(cut)


def test_texts_of_parts_are_counted_and_cut() -> None:
    parts = [{"type": "text", "text": "abcdef"}, {"type": "image"}, {"type": "text", "text": "gh"}]
    prompt = Prompt(messages=({"role": "user", "content": parts}, {"role": "tool"}))
    assert prompt.texts() == ["abcdef", "gh"] and prompt.longest_text() == 6
    (cut, other) = prompt.cut(3, "left").messages or ()
    assert cut["content"] == [{"type": "text", "text": "def"}, {"type": "image"}, {"type": "text", "text": "gh"}]
    assert other == {"role": "tool"}


def test_cutting_reaches_messages_and_fields() -> None:
    prompt = Prompt(messages=({"role": "user", "content": "abcdef"},), fields={"x": "abcdef", "n": 3})
    cut = prompt.cut(2, "right")
    assert cut.messages == ({"role": "user", "content": "ab"},) and cut.fields == {"x": "ab", "n": 3}
    assert prompt.longest_text() == 6


def test_a_template() -> None:
    template = PromptTemplate.parse("{{{title}}}: {text}\n{text}?")
    assert template.fields == ["title", "text", "text"]
    assert template.render({"title": "T", "text": "{x}"}) == "{T}: {x}\n{x}?"
    with pytest.raises(PromptError, match=r"needs \{title\}.*Did you mean 'titel'"):
        template.render({"titel": "T", "text": "a"})
    with pytest.raises(PromptError, match="needs {text}"):
        template.render({"title": "T", "text": None})


@pytest.mark.parametrize(
    "source", ["{text", "text}", "{}", "{0}", "{text!r}", "{text:>3}", "{text.__class__}", "{a[0]}", "none", ""]
)
def test_templates_that_are_refused(source: str) -> None:
    with pytest.raises(ConfigError):
        PromptTemplate.parse(source)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_a_text_is_rendered_untouched(text: str) -> None:
    assert PromptTemplate.parse("<{text}>").render({"text": text}) == f"<{text}>"
