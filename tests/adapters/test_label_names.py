"""Names of labels in --label-tokens."""

from __future__ import annotations

import pytest

from vllm_cls import ConfigError
from vllm_cls.adapters.label_tokens import parse_label_tokens


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("no,yes", {"no": ["no"], "yes": ["yes"]}),
        (" no, yes", {"no": [" no"], "yes": [" yes"]}),
        ("neg= bad| boring, pos= good", {"neg": [" bad", " boring"], "pos": [" good"]}),
        ({"neg": " bad", "pos": [" good"]}, {"neg": [" bad"], "pos": [" good"]}),
    ],
)
def test_texts_keep_their_spaces_and_names_have_none(given: object, parsed: dict[str, list[str]]) -> None:
    assert parse_label_tokens(given) == parsed


def test_two_labels_of_one_name() -> None:
    with pytest.raises(ConfigError, match="'yes' comes twice"):
        parse_label_tokens("yes, yes")
