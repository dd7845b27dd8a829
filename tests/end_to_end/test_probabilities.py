"""What is a probability and what is not, by one rule for Python, files, HTTP and measurements.

A cross-encoder saved with an identity scores with logits. Its labels' probabilities are those of transformers' pipeline,
which does not read that key; what is measured and what a threshold parts are these, and no column calls a logit a score.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import transformers
from sentence_transformers import CrossEncoder

from tests.models import tiny
from tests.server.conftest import client_of
from tests.server.served import served
from vllm_cls import LLM, Client, ConfigError, ModelError, PoolingParams, classify_file, convert
from vllm_cls.evaluation import probabilities
from vllm_cls.jobs.score import score_file
from vllm_cls.pooler.activations import activation_for, gives_probabilities

TEXTS = [
    f"{start} {middle} {end}"
    for start in ("The film", "the music", "A boring plot", "bad acting", "what")
    for middle in ("was good", "broke after 2 days", "and the password", "is terrible")
    for end in ("yes", "no !", "in Python")
]
IDENTITY = "torch.nn.modules.linear.Identity"
NAMED: dict[str, dict[str, Any]] = {
    "identity": {"sentence_transformers": {"activation_fn": IDENTITY}},
    "identity of version 3": {"sbert_ce_default_activation_function": "torch.nn.Identity"},
    "tanh": {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}},
}


def saved(folder: Path, num_labels: int, **values: Any) -> Path:
    """A BERT whose logits lie on both sides of 0, none farther from it than 0.5 for one in three."""
    made = tiny.classifier("bert", folder, num_labels=num_labels, **values)
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(made)
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    with torch.no_grad():
        logits = model.eval()(**tokenizer(TEXTS, return_tensors="pt", padding=True)).logits
        model.classifier.weight /= logits.std()
        model.classifier.bias -= logits.median(0).values
        model.classifier.bias /= logits.std()
    model.save_pretrained(made)
    return made


@pytest.fixture(
    scope="module", params=[(1, "identity"), (1, "identity of version 3"), (3, "identity"), (3, "tanh")], ids=str
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    num_labels, name = request.param
    return saved(tmp_path_factory.mktemp("model") / "ranker", num_labels, **NAMED[name])


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), device="cpu") as llm:
        yield llm


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    """Of transformers' pipeline, `(num_texts, num_labels)`."""
    pipe: Any = transformers.pipeline("text-classification", model=str(folder), top_k=None, device="cpu")
    found = pipe(TEXTS)
    return np.array([[each["score"] for each in sorted(row, key=lambda each: each["label"])] for row in found])


def labelled(folder: Path, expected: np.ndarray) -> tuple[Path, list[int]]:
    """Rows with the labels that the model gives, but for every seventh."""
    right = (expected[:, 0] > 0.5).astype(int) if expected.shape[1] == 1 else expected.argmax(1)
    gold = [int((label + 1) % max(2, expected.shape[1])) if i % 7 == 0 else int(label) for i, label in enumerate(right)]
    path = folder / "rows.jsonl"
    rows = ({"text": text, "label": label} for text, label in zip(TEXTS, gold, strict=True))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, gold


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_are_sentence_transformers_and_probabilities_transformers(
    folder: Path, llm: LLM, expected: np.ndarray
) -> None:
    outputs = [each.outputs for each in llm.classify(TEXTS)]
    assert np.array([each.probabilities for each in outputs]) == pytest.approx(expected, abs=1e-5)
    own = CrossEncoder(str(folder), device="cpu").activation_fn(torch.tensor([each.logits for each in outputs]))
    assert np.array([each.probs for each in outputs]) == pytest.approx(own.numpy(), abs=1e-5)
    assert not llm.gives_probabilities
    (raw,) = llm.classify(TEXTS[0], pooling_params=PoolingParams(use_activation=False))
    assert raw.outputs.probs == raw.outputs.logits
    assert raw.outputs.probabilities == pytest.approx(outputs[0].probabilities, abs=1e-5)
    if llm.num_labels == 1:
        pairs = [("good", text) for text in TEXTS[:5]]
        scores = [each.outputs.score for each in llm.score("good", TEXTS[:5])]
        assert scores == pytest.approx(CrossEncoder(str(folder), device="cpu").predict(pairs).tolist(), abs=1e-4)


def test_measurements_are_those_of_true_probabilities(llm: LLM, expected: np.ndarray, tmp_path: Path) -> None:
    path, gold = labelled(tmp_path, expected)
    report = classify_file(llm, path, tmp_path / "out.jsonl", label_field="label")
    two = expected if expected.shape[1] > 1 else np.hstack([1 - expected, expected])
    found: Any = report.metrics
    assert found.accuracy == pytest.approx(np.mean(two.argmax(1) == gold)) and 0.8 < found.accuracy < 0.9
    assert found.log_loss == pytest.approx(-np.log(two[np.arange(len(gold)), gold]).mean(), abs=1e-5)
    assert found.confusion == sklearn.metrics.confusion_matrix(gold, two.argmax(1)).tolist()
    sure, right, bins = two.max(1), two.argmax(1) == gold, np.minimum(np.floor(two.max(1) * 15), 14)
    error = sum(abs(sure[bins == each].sum() - right[bins == each].sum()) for each in set(bins)) / len(gold)
    assert found.calibration_error == pytest.approx(error, abs=1e-5)
    # Where the model itself says so, not the command.
    with LLM(llm.describe()["model"], device="cpu", pooler_config={"use_activation": False}) as raw:
        again = classify_file(raw, path, tmp_path / "raw.jsonl", label_field="label")
    assert again.metrics is not None and again.metrics.log_loss == pytest.approx(found.log_loss, abs=1e-6)


def test_no_row_calls_a_logit_a_score(llm: LLM, expected: np.ndarray, tmp_path: Path) -> None:
    path, _ = labelled(tmp_path, expected)
    report = classify_file(llm, path, tmp_path / "out.jsonl", keep_fields="none")
    outputs = llm.classify(TEXTS)
    for row, output in zip(rows_of(tmp_path / "out.jsonl"), outputs, strict=True):
        assert list(row) == ["label", "score", "logits"] and row["score"] is None
        assert row["logits"] == pytest.approx(output.outputs.logits, abs=1e-6)
        assert row["label"] == (None if llm.num_labels == 1 else output.outputs.label)
    classify_file(llm, path, tmp_path / "out.txt")  # a label a line, or the logit where there is none
    for line, output in zip((tmp_path / "out.txt").read_text().splitlines(), outputs, strict=True):
        assert line == output.outputs.label or float(line) == pytest.approx(output.outputs.logits[0], abs=1e-6)
    assert any("logits in place of probabilities" in note and "--hf-overrides" in note for note in report.notes)
    for options in ({"top_k": 1}, {"scores": True}):
        with pytest.raises(ConfigError, match=r"the activation that the model's config names gives none.*hf-overrides"):
            classify_file(llm, path, tmp_path / "none.jsonl", **options)
    overrides = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}
    with LLM(llm.describe()["model"], device="cpu", hf_overrides=overrides) as opened:  # as the note says
        classify_file(opened, path, tmp_path / "probs.jsonl", top_k=3, scores=True)
    found = [row["probs"] for row in rows_of(tmp_path / "probs.jsonl")]
    assert np.array(found) == pytest.approx(expected, abs=1e-5)
    if llm.num_labels == 1:
        pairs = tmp_path / "pairs.jsonl"
        pairs.write_text('{"query": "good", "document": "The film was good"}\n')
        report = score_file(llm, pairs, tmp_path / "scores.jsonl")
        (score,) = llm.score("good", "The film was good")
        assert rows_of(tmp_path / "scores.jsonl")[0]["score"] == pytest.approx(score.outputs.score, abs=1e-6)
        assert report.notes == []


def test_a_server_gives_the_same(llm: LLM, expected: np.ndarray, tmp_path: Path) -> None:
    path, _ = labelled(tmp_path, expected)
    here = classify_file(llm, path, tmp_path / "here.jsonl", label_field="label")
    with served(llm) as url, Client(url) as client:
        there = classify_file(client, path, tmp_path / "there.jsonl", label_field="label")
        assert not client.describe().gives_probabilities
        (answer,) = client.classify(TEXTS[0], extra={"logits": True})
        if llm.num_labels == 1:
            (ranked,) = client.rerank("good", [TEXTS[0]])
            assert ranked.relevance_score == pytest.approx(llm.score("good", TEXTS[0])[0].outputs.score, abs=1e-6)
    for own, row in zip(rows_of(tmp_path / "here.jsonl"), rows_of(tmp_path / "there.jsonl"), strict=True):
        assert list(own) == list(row) and own["label"] == row["label"]
        assert own["logits"] == pytest.approx(row["logits"], abs=1e-5)
    assert there.notes == here.notes
    assert here.metrics is not None and there.metrics is not None
    assert there.metrics.accuracy == here.metrics.accuracy
    assert there.metrics.log_loss == pytest.approx(here.metrics.log_loss, abs=1e-5)
    assert there.metrics.calibration_error == pytest.approx(here.metrics.calibration_error, abs=1e-5)
    assert answer.probs == pytest.approx(llm.classify(TEXTS[0])[0].outputs.probs, abs=1e-5)  # as vLLM's


@pytest.mark.parametrize("name", ["identity", "tanh"])
@pytest.mark.parametrize("asked", [{}, {"use_activation": False}])
def test_a_threshold_of_the_server_is_a_probability(tmp_path: Path, name: str, asked: dict[str, Any]) -> None:
    with LLM(str(saved(tmp_path / "ranker", 1, **NAMED[name])), device="cpu") as llm:
        logits = [each.outputs.logits[0] for each in llm.classify(TEXTS)]
        assert any(0 < logit < 0.3 for logit in logits)
        with client_of(llm, threshold=0.5) as client:
            rows = client.post("/classify", json={"input": TEXTS, **asked}).json()["data"]
    assert [row["label"] for row in rows] == ["LABEL_0" if logit >= 0 else None for logit in logits]


def test_a_regression_has_no_label_at_any_threshold(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "bert", num_labels=1, problem_type="regression")
    with LLM(str(folder), device="cpu") as llm:
        assert not llm.gives_probabilities and llm.classify("good")[0].outputs.probabilities is None
        with client_of(llm, threshold=0.0) as client:
            (row,) = client.post("/classify", json={"input": "good"}).json()["data"]
            assert row["label"] is None and client.get("/model").json()["gives_probabilities"] is False


def test_each_of_several_heads_by_its_own(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", 3, **NAMED["identity"])
    convert(str(base), tmp_path / "one", head="existing", head_name="rank")
    convert(str(tmp_path / "one"), tmp_path / "two", head="random", labels=["film", "code"], head_name="topic")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:4]))
    with LLM(str(tmp_path / "two"), device="cpu") as llm:
        outputs = llm.classify(TEXTS[:4])
        classify_file(llm, path, tmp_path / "rank.jsonl", keep_fields="none", logits=True)
        classify_file(llm, path, tmp_path / "topic.jsonl", keep_fields="none", head_name="topic", scores=True)
        with served(llm) as url, Client(url) as client:
            classify_file(client, path, tmp_path / "there.jsonl", keep_fields="none", head_name="topic", scores=True)
            assert [each.gives_probabilities for each in client.describe().heads] == [False, True]
    ranked, topics, there = (rows_of(tmp_path / f"{name}.jsonl") for name in ("rank", "topic", "there"))
    for output, rank, topic, served_row in zip(outputs, ranked, topics, there, strict=True):
        assert list(rank) == ["label", "score", "logits", "topic_label", "topic_score", "topic_probs", "topic_logits"]
        assert list(topic) == ["label", "score", "probs", "scores", "rank_label", "rank_score", "rank_logits"]
        assert list(served_row) == list(topic)
        assert rank["score"] is None and rank["logits"] == pytest.approx(output.heads["rank"].logits, abs=1e-6)
        assert topic["probs"] == pytest.approx(output.heads["topic"].probs, abs=1e-6)
        assert topic["rank_logits"] == pytest.approx(output.heads["rank"].logits, abs=1e-6)
        assert served_row["rank_logits"] == pytest.approx(topic["rank_logits"], abs=1e-5)


def test_spans_have_probabilities(tmp_path: Path) -> None:
    folder = tiny.token_classifier("bert", tmp_path, **NAMED["identity"])
    pipe: Any = transformers.pipeline("token-classification", model=str(folder), aggregation_strategy="simple")
    with LLM(str(folder), device="cpu") as llm:
        for text, output in zip(TEXTS[:5], llm.token_classify(TEXTS[:5]), strict=True):
            spans = output.outputs.spans
            assert [each.score for each in spans] == pytest.approx([each["score"] for each in pipe(text)], abs=1e-5)


def test_no_temperature_without_probabilities(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", 3, **NAMED["identity"])
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": i % 3}) + "\n" for i, text in enumerate(TEXTS)))
    with pytest.raises(ConfigError, match="gives probabilities by softmax or sigmoid"):
        convert(str(base), tmp_path / "out", calibrate=str(path))


def test_which_activations_give_probabilities() -> None:
    for name, gives in (("Sigmoid", True), ("Softmax", True), ("Hardsigmoid", True), ("ReLU", False), ("Tanh", False)):
        config = transformers.BertConfig(sentence_transformers={"activation_fn": f"torch.nn.modules.activation.{name}"})
        for num_labels in (1, 3):
            assert gives_probabilities(activation_for(config), num_labels) is gives
    scales = torch.tensor([1.0, 2.0, 3.0])  # a plugin's, for three labels
    assert gives_probabilities(lambda logits: torch.softmax(logits * scales, dim=-1), 3)


@pytest.mark.parametrize("name", ["activation.Threshold", "activation.GLU", "activation.Softmax2d", "module.Module"])
def test_a_module_that_takes_no_logits_is_refused_by_name(name: str) -> None:
    config = transformers.BertConfig(sbert_ce_default_activation_function=f"torch.nn.modules.{name}")
    with pytest.raises(ModelError, match=f"{name}' does not take logits"):
        activation_for(config)


@pytest.mark.parametrize("logits", [[0.3], [-800.0], [800.0], [1.0, -2.0, 700.0], [-900.0, -901.0]])
def test_probabilities_of_logits_as_torch_has_them(logits: list[float]) -> None:
    given = torch.tensor(logits, dtype=torch.float64)
    several = torch.sigmoid(given) if len(logits) == 1 else torch.softmax(given, dim=-1)
    assert probabilities(logits, None) == pytest.approx(several.tolist(), abs=1e-12)
    wanted = torch.sigmoid(given).tolist()
    assert probabilities(logits, "multi_label_classification") == pytest.approx(wanted, abs=1e-12)
