"""Results equal those of transformers' text-classification pipeline: texts, pairs, top_k, several labels, regression."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from vllm_cls import LLM, classify_file, convert

from ..models import tiny
from ..models.tokenizers import SENTENCES

TEXTS = SENTENCES[:6]
PAIRS = [(SENTENCES[0], SENTENCES[1]), (SENTENCES[2], "a"), ("yes", SENTENCES[3])]
PROBLEMS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "single": {"problem_type": "single_label_classification"},
    "multi": {"problem_type": "multi_label_classification"},
    "one": {"num_labels": 1},
    "regression": {"problem_type": "regression", "num_labels": 1},
}


@pytest.fixture(scope="module", params=["bert", "roberta", "distilbert", "deberta-v2", "gpt2", "qwen2"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_scores_of_texts_and_pairs(name: str, problem: str, tmp_path: Path) -> None:
    folder = tiny.classifier(name, tmp_path, **PROBLEMS[problem])
    pipeline: Any = transformers.pipeline("text-classification", str(folder), top_k=None)
    # A causal model of one label is taken for a reranker, which runs the tokenizer's own pairs only by name.
    by_name = name in ("gpt2", "qwen2") and PROBLEMS[problem].get("num_labels") == 1
    llm = LLM(str(folder), score_template="pair" if by_name else None)
    given: list[Any] = [*TEXTS, *PAIRS]
    expected = [pipeline([text])[0] for text in TEXTS]
    expected += [pipeline({"text": text, "text_pair": pair}) for text, pair in PAIRS]
    for output, ranked in zip(llm.classify(given), expected, strict=True):
        scores = output.outputs.scores
        assert [each["label"] for each in ranked] == sorted(scores, key=lambda label: -scores[label])
        for each in ranked:
            assert scores[each["label"]] == pytest.approx(each["score"], abs=1e-4)


@pytest.mark.parametrize("problem", ["single", "multi"])
def test_top_k_of_files(name: str, problem: str, tmp_path: Path) -> None:
    folder = tiny.classifier(name, tmp_path / "model", num_labels=5, **PROBLEMS[problem])
    pipeline: Any = transformers.pipeline("text-classification", str(folder))
    rows = [{"text": text, "text_pair": pair} for text, pair in PAIRS]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for top_k in (1, 3, 5):
        classify_file(str(folder), source, out, text_pair_field="text_pair", top_k=top_k, overwrite=True)
        for row, line in zip(rows, out.read_text().splitlines(), strict=True):
            expected, found = pipeline(row, top_k=top_k), json.loads(line)["top_k"]
            assert [each["label"] for each in found] == [each["label"] for each in expected]
            assert [each["score"] for each in found] == pytest.approx([e["score"] for e in expected], abs=1e-4)


@pytest.mark.parametrize(("name", "bias"), [("qwen2", 0.5), ("mamba", None)])
def test_pipelines_know_our_classes(name: str, bias: float | None, tmp_path: Path) -> None:
    """Else they log an error, and go on."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    folder, out = tiny.causal_lm(name, tmp_path / "model"), tmp_path / "out"
    convert(str(folder), out, head="tokens", label_tokens="b= bad,g= good", logit_bias=bias)
    pipeline: Any = transformers.pipeline("text-classification", str(out))
    assert type(pipeline.model).__name__ in KNOWN.values()
    with LLM(str(out)) as llm:
        (output,) = llm.classify(TEXTS[0])
    (found,) = pipeline(TEXTS[0])
    assert found["label"] == output.outputs.label
    assert found["score"] == pytest.approx(output.outputs.scores[found["label"]], abs=1e-4)
