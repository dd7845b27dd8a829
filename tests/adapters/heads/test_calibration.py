"""Calibration: the fit itself, and that what is written gives exactly the calibrated logits, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.optimize import approx_fprime
from sklearn.linear_model import LogisticRegression

from tests.models import tiny
from vllm_cls import LLM, ConfigError, convert
from vllm_cls.adapters.heads.calibration import fit
from vllm_cls.adapters.heads.linear_models import softmax

LABELS = ["negative", "positive", "neutral"]
TOKENS = "negative= bad,positive= good,neutral= boring"
TEXTS = [f"The film number {index} was {word}" for index in range(20) for word in ("good", "bad", "boring")]


def rows_for(folder: Path, model: Path, *, biased: bool = True, count: int = 300) -> Path:
    """Labelled rows that are drawn from a model's probabilities after a rescaling of its logits, to be found again.

    Args:
        biased: against the labels that the model prefers, which no temperature undoes; else as the model has it.
    """
    texts = (TEXTS * count)[:count]
    with LLM(str(model)) as llm:
        labels, outputs = llm.id2label, llm.classify(texts)
    logits = np.array([each.outputs.logits for each in outputs])
    if biased:
        preferred = logits.mean(axis=0) - logits.mean()
        logits = (logits - logits.mean(axis=0)) * 2 / logits.std() - preferred / np.linalg.norm(preferred)
    generator = np.random.default_rng(0)
    drawn = [labels[int(generator.choice(len(row), p=row))] for row in softmax(logits)]
    path = folder / "rows.jsonl"
    rows = zip(texts, drawn, strict=True)
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


def test_temperature_and_biases_are_found_again() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (40_000, 3))
    probs = softmax(logits * 0.5 + np.array([1.0, 0.0, -1.0]))
    gold = np.eye(3)[[generator.choice(3, p=row) for row in probs]]
    found = fit(logits, gold, True)
    assert found.scale == pytest.approx(0.5, abs=0.02)
    assert found.bias == pytest.approx([1.0, 0.0, -1.0], abs=0.05)
    alone = fit(logits, gold, False)
    assert alone.scale != pytest.approx(0.5, abs=0.02) and not alone.bias.any()


def test_one_label_is_platt_scaling() -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(0, 3, (500, 1))
    gold = (generator.random((500, 1)) < 1 / (1 + np.exp(-0.7 * logits + 1))).astype(float)
    found, expected = fit(logits, gold, True), LogisticRegression(C=np.inf).fit(logits, gold[:, 0])
    assert found.scale == pytest.approx(expected.coef_[0, 0], abs=1e-3)
    assert found.bias == pytest.approx(expected.intercept_, abs=1e-3)


def test_many_labels_at_once_are_judged_each_by_itself() -> None:
    generator = np.random.default_rng(2)
    logits = generator.normal(0, 2, (2000, 3))
    gold = (generator.random((2000, 3)) < 1 / (1 + np.exp(-0.5 * logits - np.array([1, 0, -2])))).astype(float)
    found = fit(logits, gold, True, multi_label=True)

    def loss(values: Any) -> float:
        scores = logits * values[0] + values[1:]
        return float((np.logaddexp(0, scores) - gold * scores).sum(axis=1).mean())

    slope = approx_fprime(np.array([found.scale, *found.bias]), loss, 1e-6)
    assert np.abs(slope).max() < 1e-3


@pytest.mark.parametrize(
    ("source", "form", "intercept"),
    [
        ("qwen2", "vcls", True),
        ("qwen2", "transformers", False),
        ("gemma2", "vcls", True),
        ("bert", "transformers", True),
    ],
)
def test_what_is_written_gives_the_calibrated_logits(tmp_path: Path, source: str, form: str, intercept: bool) -> None:
    if source == "bert":
        model = tiny.classifier("bert", tmp_path / "source", id2label=dict(enumerate(LABELS)))
        options: dict[str, Any] = {}
    else:
        model = tiny.causal_lm(source, tmp_path / "source")
        options = {"head": "tokens", "label_tokens": TOKENS}
    convert(str(model), tmp_path / "plain", **options)
    sharp = rows_for(tmp_path, tmp_path / "plain")
    report = convert(str(model), tmp_path / "out", calibrate=str(sharp), bias=None if intercept else False, **options)
    told = report.report["calibration"]
    assert told["kept"] and told["log_loss_after"] < told["log_loss_before"] and told["rows"] == 300
    assert report.format == form and ("bias" in told) is intercept
    shift = np.array(told.get("bias", [0.0] * 3))
    with LLM(str(tmp_path / "plain")) as plain, LLM(str(tmp_path / "out")) as calibrated:
        for before, after in zip(plain.classify(TEXTS[:5]), calibrated.classify(TEXTS[:5]), strict=True):
            expected = np.array(before.outputs.logits) / told["temperature"] + shift
            assert after.outputs.logits == pytest.approx(expected.tolist(), abs=1e-3, rel=1e-4)
    if form == "transformers":
        opened = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        with torch.no_grad():
            logits = opened(**tokenizer(TEXTS[4], return_tensors="pt")).logits[0].tolist()
        assert after.outputs.logits == pytest.approx(logits, abs=1e-3, rel=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "calibration.log_loss_after" in card and "calibrated by a temperature" in card


def test_a_calibration_that_does_not_help_is_left_out(tmp_path: Path) -> None:
    model = tiny.causal_lm("qwen2", tmp_path / "source")
    options = {"head": "tokens", "label_tokens": TOKENS}
    convert(str(model), tmp_path / "plain", **options)
    path = rows_for(tmp_path, tmp_path / "plain", biased=False, count=30)
    report = convert(str(model), tmp_path / "out", calibrate=str(path), **options)
    told = report.report["calibration"]
    assert not told["kept"] and told["log_loss_after"] >= told["log_loss_before"] and "temperature" not in told
    assert report.format == "transformers"
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "out")]
    assert weights[0] == weights[1]


def test_a_two_way_head_takes_the_names_of_its_two_sides(tmp_path: Path) -> None:
    model = tiny.causal_lm("qwen2", tmp_path / "source")
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for index, text in enumerate(TEXTS):
            file.write(json.dumps({"text": text, "label": "yes" if index % 4 == 0 else "no"}) + "\n")
    report = convert(
        str(model), tmp_path / "out", head="two-way", label_tokens="no= bad,yes= good", calibrate=str(path)
    )
    told = report.report["calibration"]
    assert report.labels == ["yes"] and told["kept"] and told["log_loss_after"] < 0.62


def test_an_own_checkpoint_is_calibrated_again(tmp_path: Path) -> None:
    model = tiny.causal_lm("gemma2", tmp_path / "source")
    convert(str(model), tmp_path / "first", head="tokens", label_tokens=TOKENS, logit_bias=0.5)
    rows = rows_for(tmp_path, tmp_path / "first")
    told = convert(str(tmp_path / "first"), tmp_path / "second", calibrate=str(rows)).report["calibration"]
    assert told["kept"]
    with LLM(str(tmp_path / "first")) as first, LLM(str(tmp_path / "second")) as second:
        before, after = first.classify(TEXTS[0])[0].outputs, second.classify(TEXTS[0])[0].outputs
    expected = np.array(before.logits) / told["temperature"] + np.array(told.get("bias", 0.0))
    assert after.logits == pytest.approx(expected.tolist(), abs=1e-3, rel=1e-4)


def test_what_cannot_be_calibrated_is_refused(tmp_path: Path) -> None:
    model = tiny.classifier("bert", tmp_path / "source", problem_type="regression", num_labels=1)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": 1}\n' * 12)
    with pytest.raises(ConfigError, match="gives probabilities by softmax or sigmoid"):
        convert(str(model), tmp_path / "out", calibrate=str(path))
    lm = tiny.causal_lm("qwen2", tmp_path / "lm")
    with pytest.raises(ConfigError, match="--calibrate has the label 'sad', which the model's labels .* do not name"):
        path.write_text('{"text": "a", "label": "sad"}\n' * 12)
        convert(str(lm), tmp_path / "out", head="tokens", label_tokens=TOKENS, calibrate=str(path))
    with pytest.raises(ConfigError, match="learn from a label a text"):
        convert(
            str(lm), tmp_path / "out", convert="token_classify", head="random", labels=["a", "b"], calibrate=str(path)
        )
    with pytest.raises(ConfigError, match="other rows than --train"):
        convert(str(lm), tmp_path / "out", head="fit", train=str(path), calibrate=str(path))
    assert not (tmp_path / "out").exists()
