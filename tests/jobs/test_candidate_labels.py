"""Files and servers whose texts are classified by labels that the caller names; transformers' pipeline gives the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from click.testing import CliRunner, Result

from tests.jobs.files import fields_of, jsonl
from tests.models import tiny
from tests.server.served import served
from vllm_cls import LLM, Client, ConfigError, JobError, classify_file
from vllm_cls.cli.main import vcls
from vllm_cls.client import RejectedError
from vllm_cls.jobs.resume import parts

TEXTS = ["The film was good and the music was great.", "yes no true false", "long " * 99]
LABELS = ["positive", "negative, not good", "music"]
NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names: dict[str, Any] = {"id2label": NLI, "label2id": {label: index for index, label in NLI.items()}}
    return tiny.classifier("bert", tmp_path_factory.mktemp("nli") / "bert", **names)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), device="cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def url(llm: LLM) -> Iterator[str]:
    with served(llm, max_inputs=20) as address:
        yield address


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[bool, list[dict[str, float]]]:
    """transformers' probabilities of the labels for each text, cut as it cuts them; by `multi_label`."""
    pipe = transformers.pipeline("zero-shot-classification", model=str(folder))
    pipe.tokenizer.model_max_length = pipe.model.config.max_position_embeddings
    found = {several: pipe(TEXTS, LABELS, multi_label=several) for several in (False, True)}
    return {
        several: [dict(zip(each["labels"], each["scores"], strict=True)) for each in all_of]
        for several, all_of in found.items()
    }


def rows_of(tmp_path: Path) -> Path:
    rows = [{"text": text, "mood": "music"} for text in TEXTS] + [{"text": ""}]
    return jsonl(tmp_path / "in.jsonl", rows)


def near(values: dict[str, float]) -> Any:
    return pytest.approx(values, abs=1e-5)


def test_a_file(llm: LLM, expected: dict[bool, list[dict[str, float]]], url: str, tmp_path: Path) -> None:
    inputs, options = rows_of(tmp_path), {"candidate_labels": LABELS, "scores": True, "logits": True, "top_k": 1}
    report = classify_file(llm, inputs, tmp_path / "out.jsonl", label_field="mood", **options)
    *rows, bad = fields_of(tmp_path / "out.jsonl")
    for row, scores in zip(rows, expected[False], strict=True):
        assert row["scores"] == near(scores) and row["probs"] == near([scores[each] for each in LABELS])  # type: ignore[arg-type]
        assert row["label"] == row["top_k"][0]["label"] == max(scores, key=scores.__getitem__)
    assert [row.get("truncated") for row in rows] == [None, None, True] and bad["error"] == "the field 'text' is empty"
    right = sum(max(scores, key=scores.__getitem__) == "music" for scores in expected[False])
    assert report.metrics is not None and report.metrics.accuracy == pytest.approx(right / len(TEXTS))
    with Client(url) as client:
        classify_file(client, inputs, tmp_path / "asked.jsonl", **options)
    for here, there in zip([*rows, bad], fields_of(tmp_path / "asked.jsonl"), strict=True):
        assert {**there, "scores": 0, "probs": 0, "logits": 0, "top_k": 0} == {
            **here, "scores": 0, "probs": 0, "logits": 0, "top_k": 0,
        }  # fmt: skip
        assert there["probs"] == pytest.approx(here["probs"], abs=1e-6)
        assert there["logits"] == pytest.approx(here["logits"], abs=1e-5)


def test_several_labels_at_once(llm: LLM, expected: dict[bool, list[dict[str, float]]], tmp_path: Path) -> None:
    threshold = sorted(each for scores in expected[True] for each in scores.values())[4] - 1e-4
    options = {"candidate_labels": LABELS, "multi_label": True, "scores": True, "threshold": threshold}
    classify_file(llm, rows_of(tmp_path), tmp_path / "out.jsonl", **options)  # type: ignore[arg-type]
    for row, scores in zip(fields_of(tmp_path / "out.jsonl")[:-1], expected[True], strict=True):
        assert row["scores"] == near(scores)
        assert row["labels"] == [label for label in LABELS if scores[label] >= threshold]


def run(*args: Any) -> Result:
    return CliRunner().invoke(vcls, ["classify", *map(str, args)])


def test_the_command(folder: Path, expected: dict[bool, list[dict[str, float]]], url: str, tmp_path: Path) -> None:
    labels = ["--candidate-labels", r"positive,negative\, not good,music", "--scores", "-q"]
    inputs, out = rows_of(tmp_path), tmp_path / "out.parquet"
    for model in ([folder], ["--server", url]):
        assert run(*model, inputs, "-o", out, *labels, "--overwrite").exit_code == 3  # a row without a text
        import pyarrow.parquet

        found = pyarrow.parquet.read_table(out).to_pylist()
        assert [dict(row["scores"]) for row in found[:-1]] == [near(scores) for scores in expected[False]]
    other = tiny.classifier("bert", tmp_path / "other")
    for model, options, message in (
        (folder, ["--candidate-labels", "a,,b"], "none empty"),
        (folder, ["--candidate-labels", "a, a"], "each once"),
        (folder, ["--candidate-labels", "a", "--no-activation"], "use_activation: not with candidate_labels"),
        (folder, ["--multi-label"], "multi_label is for candidate_labels"),
        (other, ["--candidate-labels", "a"], "a label 'entailment'; this one has LABEL_0"),
    ):
        failed = run(model, inputs, "-o", tmp_path / "bad.jsonl", *options)
        assert failed.exit_code == 1 and message in failed.output and "Traceback" not in failed.output
        assert not (tmp_path / "bad.jsonl").exists()


def test_a_job_goes_on_with_the_same_labels_alone(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 2)
    inputs, out = rows_of(tmp_path), tmp_path / "out.jsonl"
    with pytest.raises(JobError, match="2 finished rows are kept"):
        classify_file(llm, inputs, out, candidate_labels=LABELS, on_error="fail")
    for other in ({"candidate_labels": LABELS[:2]}, {"candidate_labels": LABELS, "multi_label": True}):
        with pytest.raises(JobError, match=f"{[*other][-1]}.*: "):
            classify_file(llm, inputs, out, **other)  # type: ignore[arg-type]
    report = classify_file(llm, inputs, out, candidate_labels=LABELS)
    assert (report.rows, report.failed) == (4, 1)
    assert report.notes == ["2 rows that an earlier run has finished are not run again"]


def test_a_server(url: str, llm: LLM, expected: dict[bool, list[dict[str, float]]]) -> None:
    with Client(url) as client:
        cut: dict[str, Any] = {"candidate_labels": LABELS, "truncate_prompt_tokens": -1, "truncated": True}
        for several in (False, True):
            found = client.classify(TEXTS, multi_label=several, scores=True, top_k=2, **cut)
            assert [each.scores for each in found] == [near(scores) for scores in expected[several]]
            assert [each.truncated for each in found] == [False, False, True]
            assert found[0].num_classes == len(LABELS) and len(found[0].top_k or ()) == 2
        assert client.classify(TEXTS[0], candidate_labels=["music"]).data[0].label is None
        for wrong, param in (
            ({"candidate_labels": []}, "candidate_labels"),
            ({"candidate_labels": ["a", "a"]}, "candidate_labels"),
            ({"candidate_labels": ["a"], "hypothesis_template": "no place"}, "hypothesis_template"),
            ({"hypothesis_template": "a {}"}, "candidate_labels"),
            ({"candidate_labels": ["a"], "use_activation": False}, "use_activation"),
            ({"candidate_labels": [str(i) for i in range(21)]}, "candidate_labels"),
        ):
            with pytest.raises(RejectedError) as refused:
                client.classify(TEXTS[0], **wrong)  # type: ignore[arg-type]
            assert (refused.value.status, refused.value.param) == (400, param)


def test_metrics_of_a_server_count_the_models_labels_alone(llm: LLM, url: str) -> None:
    import httpx

    with Client(url) as client:
        client.classify(TEXTS[0], candidate_labels=["private", "secret"])
        client.classify(TEXTS[0])
    text = httpx.get(f"{url}/metrics").text
    assert "vcls_predictions_total" in text and "private" not in text and "secret" not in text


def test_labels_of_a_model_that_cannot(tmp_path: Path) -> None:
    with (
        LLM(str(tiny.classifier("bert", tmp_path / "other"))) as other,
        served(other) as address,
        Client(address) as client,
        pytest.raises(ConfigError, match="a label 'entailment'"),
    ):
        classify_file(client, rows_of(tmp_path), tmp_path / "out.jsonl", candidate_labels=LABELS)
    assert not (tmp_path / "out.jsonl").exists()
