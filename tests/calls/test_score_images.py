"""Scores of a text and a document with images, written as vLLM has them: the prompt that the template makes, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vllm_cls
from tests.models import tiny, vision
from vllm_cls import LLM, PromptError

TEMPLATE = "<|im_start|>{{ query }} {{ document }}<|im_end|>"
A, B = vision.picture(24, 16, 0), vision.picture(40, 32, 1)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("ranker")
    vllm_cls.convert(str(vision.qwen2_5_vl(folder / "lm")), folder / "out", head="random", num_labels=1, seed=0)
    with LLM(str(folder / "out"), dtype="float32", score_template=TEMPLATE) as llm:
        yield llm


def image(value: Any) -> dict[str, Any]:
    return {"type": "image", "image": value}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def by_hand(llm: LLM, written: str, *images: Any) -> Any:
    data = {"multi_modal_data": {"image": list(images)}} if images else {}
    (output,) = llm.classify({"prompt": written, **data})
    return pytest.approx(output.outputs.probs[0], abs=1e-5)


def test_documents_with_images(llm: LLM) -> None:
    documents: list[Any] = [
        "good",
        {"content": [text("good")]},
        {"content": [image(A)]},
        {"content": [text("good"), image(B), image(A)]},
    ]
    found = [each.outputs.score for each in llm.score("which", documents)]
    plain = by_hand(llm, "<|im_start|>which good<|im_end|>")
    assert found == [
        plain, plain, by_hand(llm, f"<|im_start|>which {vision.IMAGE}<|im_end|>", A),
        by_hand(llm, f"<|im_start|>which good{vision.IMAGE}{vision.IMAGE}<|im_end|>", B, A),
    ]  # fmt: skip
    best = llm.rerank("which", documents[2])
    assert [(each.document, each.relevance_score) for each in best] == [
        (documents[2], pytest.approx(found[2], abs=1e-5))
    ]
    assert [llm.score("which", each)[0].outputs.score for each in documents] == [
        pytest.approx(each, abs=1e-5) for each in found
    ]


@pytest.mark.parametrize("template", [TEMPLATE, "<|im_start|>{{ document }} {{ query }}<|im_end|>"])
def test_images_on_both_sides(llm: LLM, template: str) -> None:
    """Whichever side the template writes first."""
    query, document = {"content": [image(A), text("q")]}, {"content": [text("d"), image(B)]}
    (found,) = llm.score(query, document, chat_template=template)
    q, d = f"{vision.IMAGE}q", f"d{vision.IMAGE}"
    images = (A, B) if template == TEMPLATE else (B, A)
    assert found.outputs.score == by_hand(llm, template.replace("{{ query }}", q).replace("{{ document }}", d), *images)


@pytest.mark.parametrize(
    "side", [{"contents": []}, {"content": "a"}, {"content": [{"type": "audio", "audio": "x"}]}, {"content": ["a"]}]
)
def test_what_is_no_side(llm: LLM, side: Any) -> None:
    with pytest.raises(PromptError, match="of a pair is a text"):
        llm.score("which", side)


def test_a_model_of_texts(tmp_path: Path) -> None:
    with LLM(str(tiny.classifier("bert", tmp_path / "m", num_labels=1))) as llm:
        assert llm.score("a", {"content": [text("b")]})[0].outputs.score == llm.score("a", "b")[0].outputs.score
        with pytest.raises(PromptError, match="this model reads texts alone"):
            llm.score("a", {"content": [image(A)]})
