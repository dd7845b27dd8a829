"""Names of labels in --label-tokens."""

from __future__ import annotations

import pytest

from vllm_cls import ConfigError
from vllm_cls.adapters.heads.label_tokens import parse_label_tokens


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("no,yes", {"no": ["no"], "yes": ["yes"]}),
        (" no, yes", {"no": [" no"], "yes": [" yes"]}),
        ("neg= bad| boring, pos= good", {"neg": [" bad", " boring"], "pos": [" good"]}),
        ({"neg": " bad", "pos": [" good"]}, {"neg": [" bad"], "pos": [" good"]}),
        ("line=\n,b= bad", {"line": ["\n"], "b": [" bad"]}),
        (r"comma=\,|\|,equals=\==,back=\\,\=", {"comma": [",", "|"], "equals": ["=="], "back": ["\\"], "=": ["="]}),
        (r"a\,b= x,c=\n", {"a,b": [" x"], "c": [r"\n"]}),
        ('{"a=b": "x|y"}', {"a=b": ["x|y"]}),
    ],
)
def test_texts_keep_their_spaces_and_names_have_none(given: object, parsed: dict[str, list[str]]) -> None:
    assert parse_label_tokens(given) == parsed


def test_two_labels_of_one_name() -> None:
    with pytest.raises(ConfigError, match="'yes' comes twice"):
        parse_label_tokens("yes, yes")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("{'a': 'b'}", r"--label-tokens \"{'a': 'b'}\" is not JSON"),
        ({"a": 5}, "the label 'a' has 5; give it a text"),
        ('{"a": [1]}', r"the label 'a' has \[1\]"),
        ('{"a": ["x", ""]}', "'a' has an empty text"),
        ("{}", "needs 'label=text"),
    ],
)
def test_what_names_no_texts_is_refused(given: object, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_label_tokens(given)
