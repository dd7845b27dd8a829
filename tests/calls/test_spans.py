"""Spans equal those of transformers' token-classification pipeline, for every aggregation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from vllm_cls import LLM, ConfigError, PromptError
from vllm_cls.calls.spans import SpanFinder
from vllm_cls.config import AGGREGATIONS
from vllm_cls.inputs.tokenization import Places, Tokenized
from vllm_cls.outputs import Span
from vllm_cls.runtime.batch import TokenSequence

from ..models import tiny, tokenizers

TEXTS = [
    *tokenizers.SENTENCES[:8],
    "  Two  spaces, a tab\tand\nnew lines ",
    "Ünïcödé, naïve café — 中文 mixed 😀 in!",
    " 👩🏽‍🚀🪿 e\u0301\u00a0x\u200b ✈️",
    "word",
    "?!... (brackets) [x] don't",
]
# Word pieces, byte pairs with and without special tokens, unigrams that begin and that end with special tokens.
NAMES = ["bert", "distilbert", "roberta", "xlm-roberta", "albert", "gpt2", "qwen2", "deberta-v2", "modernbert"]


def spans(outputs: Any) -> list[list[Span]]:
    return [output.outputs.spans for output in outputs]


def assert_same(found: list[Span], expected: list[dict[str, Any]]) -> None:
    assert [(each.label, each.start, each.end, each.word) for each in found] == [
        (each.get("entity_group", each.get("entity")), each["start"], each["end"], each["word"]) for each in expected
    ]
    assert [each.score for each in found] == pytest.approx([float(each["score"]) for each in expected], abs=1e-4)


@pytest.fixture(scope="module", params=NAMES)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LLM]:
    folder = tiny.token_classifier(request.param, tmp_path_factory.mktemp(request.param))
    return folder, LLM(str(folder))


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ignored", [["O"], [], ["O", "PER", "B-LOC"]], ids=["default", "nothing", "more"])
def test_it_finds_what_the_pipeline_finds(models: tuple[Path, LLM], aggregation: str, ignored: list[str]) -> None:
    folder, llm = models
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=llm.max_model_len)
    pipeline: Any = transformers.pipeline(
        "token-classification",
        str(folder),
        tokenizer=tokenizer,
        aggregation_strategy=aggregation,
        ignore_labels=ignored,
    )
    outputs = llm.token_classify(
        TEXTS,
        aggregation_strategy=aggregation,
        ignore_labels=ignored,
        tokenization_kwargs={"truncate_prompt_tokens": -1},
    )
    some = 0
    for text, found in zip(TEXTS, spans(outputs), strict=True):
        assert_same(found, pipeline(text))
        some += len(found)
    assert some > 0
    streamed = llm.token_classify_iter(
        iter(TEXTS), aggregation_strategy=aggregation, ignore_labels=ignored, truncate=True
    )
    for output, found in zip(streamed, spans(outputs), strict=True):
        assert [(each.label, each.start) for each in output.outputs.spans] == [(e.label, e.start) for e in found]


def labelled(words: list[tuple[str, list[float]]], aggregation: str) -> list[tuple[str, str, float]]:
    """Spans `(label, text, score)` of word pieces with their probabilities of O, B-X, I-X, B-Y, I-Y."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(
            tokenizers.models.WordPiece({"[UNK]": 0, **{w: i + 1 for i, (w, _) in enumerate(words)}}, unk_token="[UNK]")
        ),
        unk_token="[UNK]",
    )
    text, offsets = "", []
    for word, _ in words:
        text += "" if word.startswith("##") or not text else " "
        offsets.append((len(text), len(text) + len(word.removeprefix("##"))))
        text += word.removeprefix("##")
    ids = tuple(range(1, len(words) + 1))
    tokenized = Tokenized(TokenSequence(ids, ids), False, Places(text, offsets, [0] * len(ids)))
    finder = SpanFinder(tokenizer, aggregation, frozenset(["O"]))
    labels = dict(enumerate(["O", "B-X", "I-X", "B-Y", "I-Y"]))
    probs = np.array([each for _, each in words], dtype=np.float32)
    return [(s.label, text[s.start : s.end], round(s.score, 4)) for s in finder.spans(tokenized, probs, labels)]


MICROSOFT = [
    ("micro", [0.1, 0.5, 0.1, 0.3, 0.0]),
    ("##soft", [0.1, 0.0, 0.1, 0.8, 0.0]),
    ("com", [0.0, 0.0, 0.6, 0.4, 0.0]),
    ("##pany", [0.0, 0.0, 0.9, 0.1, 0.0]),
]


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("none", [("B-X", "micro", 0.5), ("B-Y", "soft", 0.8), ("I-X", "com", 0.6), ("I-X", "pany", 0.9)]),
        ("simple", [("X", "micro", 0.5), ("Y", "soft", 0.8), ("X", "company", 0.75)]),
        ("first", [("X", "microsoft company", 0.55)]),
        ("average", [("Y", "microsoft", 0.55), ("X", "company", 0.75)]),
        ("max", [("Y", "microsoft", 0.8), ("X", "company", 0.9)]),
    ],
)
def test_aggregations_by_hand(aggregation: str, expected: list[tuple[str, str, float]]) -> None:
    assert labelled(MICROSOFT, aggregation) == expected


def test_a_beginning_parts_neighbours_of_one_label() -> None:
    begins, goes_on = [0.0, 0.9, 0.1, 0.0, 0.0], [0.0, 0.1, 0.9, 0.0, 0.0]
    words = [("a", begins), ("b", goes_on), ("c", begins), ("d", [1.0, 0.0, 0.0, 0.0, 0.0]), ("e", goes_on)]
    assert [text for _, text, _ in labelled(words, "simple")] == ["a b", "c", "e"]


def test_what_has_no_spans_is_refused(models: tuple[Path, LLM]) -> None:
    _, llm = models
    with pytest.raises(ConfigError, match="first"):
        llm.token_classify("a text", aggregation_strategy="frist")
    with pytest.raises(ConfigError, match="list of labels"):
        llm.token_classify("a text", ignore_labels="O")
    for prompt in ([20, 21], ("one", "two"), ("one", "")):
        with pytest.raises(PromptError, match="plain text"):
            llm.token_classify(prompt)
    with pytest.raises(PromptError, match="maximum"):
        llm.token_classify("good " * 200)
    long, short = llm.token_classify_iter(["good " * 200, "good"])
    assert long.outputs is None and "maximum" in long.error and short.error is None


def test_a_cut_text_has_the_places_of_what_is_left(models: tuple[Path, LLM]) -> None:
    _, llm = models
    text = "The film was good. " * 40
    for side in ("right", "left"):
        (output,) = llm.token_classify(
            text,
            aggregation_strategy="none",
            ignore_labels=[],
            tokenization_kwargs={"truncate_prompt_tokens": 16, "truncation_side": side},
        )
        assert output.truncated
        found = output.outputs.spans
        assert found[0].start < 3 if side == "right" else found[-1].end > len(text) - 3
        assert all(text[each.start : each.end].strip() for each in found if each.word.strip("Ġ▁ "))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_names_of_labels_may_have_dashes(aggregation: str, tmp_path: Path) -> None:
    names = dict(enumerate(["O", "B-date-time", "I-date-time", "B-date", "well-known", "-"]))
    folder = tiny.token_classifier("bert", tmp_path, id2label=names)
    pipeline: Any = transformers.pipeline("token-classification", str(folder), aggregation_strategy=aggregation)
    (found,) = spans(LLM(str(folder)).token_classify(TEXTS[0], aggregation_strategy=aggregation))
    assert_same(found, pipeline(TEXTS[0]))
    assert {each.label for each in found} & {"date-time", "well-known", "known", "I-date-time", "B-date-time"}


@pytest.mark.parametrize(
    "options", [{"hf_overrides": {"problem_type": "regression"}}, {"pooler_config": {"pooling_type": "STEP"}}]
)
def test_numbers_of_tokens_have_no_spans(options: dict[str, Any], tmp_path: Path) -> None:
    llm = LLM(str(tiny.token_classifier("bert", tmp_path)), **options)
    with pytest.raises(ConfigError, match="numbers, not labels"):
        llm.token_classify("a text")


def test_a_model_that_labels_no_tokens_has_no_spans(tmp_path: Path) -> None:
    llm = LLM(str(tiny.classifier("bert", tmp_path)))
    with pytest.raises(ConfigError, match="--convert token_classify"):
        llm.token_classify("a text")
