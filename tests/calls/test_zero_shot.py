"""`candidate_labels` give what transformers' zero-shot-classification pipeline does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.models import tiny
from vllm_cls import LLM, AsyncLLM, ConfigError, PromptError

TEXTS = ["The film was good and the music was great.", "yes no true false"]
LABELS = ["positive", "negative", "music"]


def _names(*labels: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


NLI = _names("contradiction", "neutral", "Entailment")


@pytest.fixture(scope="module", params=["bert", "roberta"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.classifier(request.param, tmp_path_factory.mktemp("nli") / request.param, **NLI)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder)) as opened:
        yield opened


def _expected(folder: Path, labels: list[str], **options: Any) -> list[list[float]]:
    found = transformers.pipeline("zero-shot-classification", model=str(folder))(TEXTS, labels, **options)
    return [[dict(zip(each["labels"], each["scores"], strict=True))[label] for label in labels] for each in found]


@pytest.mark.parametrize("labels", [LABELS, LABELS[:1]])
@pytest.mark.parametrize("options", [{}, {"multi_label": True}, {"hypothesis_template": "the {} end"}])
def test_equal_to_transformers(folder: Path, llm: LLM, labels: list[str], options: dict[str, Any]) -> None:
    found = llm.classify(TEXTS, candidate_labels=labels, **options)
    for output, expected in zip(found, _expected(folder, labels, **options), strict=True):
        assert output.outputs.probs == pytest.approx(expected, abs=1e-5)
        assert output.outputs.id2label == dict(enumerate(labels))
    if len(labels) > 1:
        assert found[0].outputs.label == max(found[0].outputs.scores, key=found[0].outputs.scores.__getitem__)


@pytest.mark.parametrize(("name", "shares"), [("bart", False), ("qwen2", True)])
def test_the_text_runs_once_where_the_model_allows(name: str, shares: bool, tmp_path: Path) -> None:
    labels = [*LABELS, *"abcd"]
    folder = tiny.classifier(name, tmp_path / name, **NLI)
    with LLM(str(folder)) as llm:
        found = llm.classify(TEXTS, candidate_labels=labels)
        counters = llm.counters
    for output, expected in zip(found, _expected(folder, labels), strict=True):
        assert output.outputs.probs == pytest.approx(expected, abs=1e-5)
    pairs, rest = counters.num_prompt_tokens, counters.num_prompt_tokens - counters.num_shared_tokens
    assert counters.num_tokens < pairs / 2 if shares else counters.num_tokens == rest == pairs


def test_entailment_first(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "nli", **_names("entailment", "neutral", "contradiction"))
    with LLM(str(folder)) as llm:
        found = llm.classify(TEXTS, candidate_labels=LABELS, multi_label=True)
    for output, expected in zip(found, _expected(folder, LABELS, multi_label=True), strict=True):
        assert output.outputs.probs == pytest.approx(expected, abs=1e-5)


def test_the_text_is_cut_and_never_a_hypothesis(folder: Path, llm: LLM) -> None:
    long, template = ["good " * 99], "the {} end" + " of the film" * 3
    pipe = transformers.pipeline("zero-shot-classification", model=str(folder))
    pipe.tokenizer.model_max_length = limit = llm.max_model_len - 8
    expected = pipe(long, LABELS, hypothesis_template=template)[0]
    cut = {"truncate_prompt_tokens": limit}
    found = llm.classify(long, candidate_labels=LABELS, hypothesis_template=template, tokenization_kwargs=cut)[0]
    assert found.truncated and found.outputs.scores == pytest.approx(
        dict(zip(expected["labels"], expected["scores"], strict=True)), abs=1e-5
    )


def test_async(llm: LLM) -> None:
    async def both() -> Any:
        async with AsyncLLM(llm) as shared:
            return await shared.classify(TEXTS[0], candidate_labels=LABELS), await shared.classify(
                TEXTS, candidate_labels=LABELS
            )

    one, several = asyncio.run(both())
    expected = [each.outputs.probs for each in llm.classify(TEXTS, candidate_labels=LABELS)]
    assert one.outputs.probs == pytest.approx(expected[0], abs=1e-6)
    assert [each.outputs.probs for each in several] == [pytest.approx(each, abs=1e-6) for each in expected]


def test_errors(llm: LLM, tmp_path: Path) -> None:
    for options, message in (
        ({"candidate_labels": []}, "must be texts"),
        ({"candidate_labels": ["a", "a"]}, "each once"),
        ({"candidate_labels": ["a"], "hypothesis_template": "no place"}, "needs one {}"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{} {}"}, "needs one {}"),
        ({"candidate_labels": ["a", ""]}, "none empty"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{:>999999999999}"}, "needs one {}"),
        ({"candidate_labels": ["a"], "lora_request": "b"}, "leave it out"),
    ):
        with pytest.raises(ConfigError, match=message):
            llm.classify(TEXTS, **options)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="^prompt 1: This model's maximum context length"):
        llm.classify([TEXTS[0], "long " * 99], candidate_labels=LABELS)
    with pytest.raises(PromptError, match="^candidate_labels are for texts; got tuple"):
        llm.classify(("a", "b"), candidate_labels=LABELS)
    other = LLM(str(tiny.classifier("bert", tmp_path / "other")))
    with other, pytest.raises(ConfigError, match="a label 'entailment'; this one has LABEL_0"):
        other.classify(TEXTS, candidate_labels=LABELS)
