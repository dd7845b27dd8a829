from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import vllm_cls.llm
from vllm_cls.errors import ConfigError, JobError
from vllm_cls.jobs.classify import classify_file
from vllm_cls.jobs.pipeline import answers
from vllm_cls.jobs.report.progress import JobProgress

from .fake import FakeLLM
from .files import fields_of, jsonl, write

FORMATS = ["jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "csv.zst"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    texts = ["good one", "bad one", "a good day", "nothing", "good"]
    return jsonl(tmp_path / "rows.jsonl", [{"id": f"0{i}", "text": text} for i, text in enumerate(texts)])


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of an output of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_row_is_classified_in_its_order(rows: Path, tmp_path: Path) -> None:
    llm = FakeLLM()
    report = classify_file(llm, rows, tmp_path / "out.jsonl")
    found = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == ["00", "01", "02", "03", "04"]
    assert [row["label"] for row in found] == ["positive", "negative", "positive", "negative", "positive"]
    for row in found:
        assert row["probs"] == llm.probs(row["text"])
        assert row["score"] == max(row["probs"])
        assert list(row) == ["id", "text", "label", "score", "probs"]
    assert (report.rows, report.failed, report.truncated) == (5, 0, 0)
    assert report.output == str(tmp_path / "out.jsonl")
    assert report.seconds > 0
    assert not llm.closed


@pytest.mark.parametrize("given", FORMATS)
@pytest.mark.parametrize("wanted", FORMATS)
def test_every_format_into_every_format(rows: Path, tmp_path: Path, given: str, wanted: str) -> None:
    classify_file(FakeLLM(), rows, tmp_path / f"in.{given}", keep_fields=["id", "text"])
    report = classify_file(FakeLLM(), tmp_path / f"in.{given}", tmp_path / f"out.{wanted}", keep_fields="id")
    assert (report.rows, report.failed, report.failures) == (5, 0, [])
    found = fields_of(tmp_path / f"out.{wanted}")
    assert [row["id"] for row in found] == ["00", "01", "02", "03", "04"]
    probs = [json.loads(row["probs"]) if isinstance(row["probs"], str) else row["probs"] for row in found]
    assert probs == [FakeLLM().probs(text) for text in ("good", "bad", "good", "bad", "good")]


BAD_LINES = [
    '{"text": "good 1"}',
    '{"text": "BOOM 2"}',
    "broken",
    '{"text": null}',
    '{"txt": "x"}',
    '{"text": "NAN 6"}',
    '{"text": "good 7"}',
    '{"text": 8}',
]


@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("bad_in_a_row", [1, 10_000])
def test_a_bad_row_keeps_its_place_and_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, bad_in_a_row: int
) -> None:
    monkeypatch.setattr(answers, "BAD_IN_A_ROW", bad_in_a_row)
    path = write(tmp_path / "in.jsonl", "\n".join(BAD_LINES * 3))
    report = classify_file(FakeLLM(window=window), path, tmp_path / "out.jsonl")
    found = read(tmp_path / "out.jsonl")
    assert [row["label"] for row in found] == ["positive", None, None, None, None, None, "positive", None] * 3
    assert [row.get("text") for row in found[:8]] == ["good 1", "BOOM 2", None, None, None, "NAN 6", "good 7", 8]
    for row, line in zip(found, BAD_LINES * 3, strict=True):
        assert ("error" in row) == ("good" not in line)
        assert (row["score"] is None) == (row["probs"] is None) == ("error" in row)
    assert (report.rows, report.failed) == (24, 18)
    assert report.failures == [
        f"{path}, line 2: the tokenizer refuses this text",
        f"{path}, line 3: not JSON: Expecting value at character 1 of the line",
        f"{path}, line 4: the field 'text' is null",
        f"{path}, line 5: no field 'text'; there is 'txt'. Did you mean 'txt'? If so, name it with --text-field or its like.",
        f"{path}, line 6: the model gave [nan, nan], which is not finite; its weights or its dtype are at fault",
    ]


def test_rows_without_a_prompt_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written while the file is still being read."""
    monkeypatch.setattr(answers, "BAD_IN_A_ROW", 10)
    path = jsonl(tmp_path / "in.jsonl", [{"text": ""}] * 100 + [{"text": "good"}])
    written_at: list[float] = []
    classify_file(FakeLLM(), path, tmp_path / "out.jsonl", on_progress=lambda told: written_at.append(told.share or 0))
    assert written_at.pop(0) == 0  # before the first row
    assert written_at == sorted(written_at)
    assert written_at[0] < 0.05
    assert len(read(tmp_path / "out.jsonl")) == 101


def test_the_reader_is_never_far_ahead_of_the_writer(tmp_path: Path) -> None:
    taken = 0

    class Counting(FakeLLM):
        def classify_iter(self, prompts: Any, **options: Any) -> Iterator[Any]:
            def counted() -> Iterator[Any]:
                nonlocal taken
                for prompt in prompts:
                    taken += 1
                    yield prompt

            return super().classify_iter(counted(), **options)

    ahead = []
    path = jsonl(tmp_path / "in.jsonl", [{"text": str(i)} for i in range(200)])
    llm = Counting(window=8)
    classify_file(
        llm, path, tmp_path / "out.jsonl", on_progress=lambda told: told.rows and ahead.append(taken - told.rows)
    )
    assert len(ahead) == 200
    assert max(ahead) < 8


def test_long_texts_are_cut_and_said_or_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"text": "good " * 20}, {"text": "good"}])
    report = classify_file(FakeLLM(), path, tmp_path / "cut.jsonl")
    assert (report.truncated, report.failed) == (1, 0)
    assert [row.get("truncated") for row in read(tmp_path / "cut.jsonl")] == [True, None]
    report = classify_file(FakeLLM(), path, tmp_path / "refused.csv", long_text="error")
    assert (report.truncated, report.failed) == (0, 1)
    found = fields_of(tmp_path / "refused.csv")
    assert [(row["label"], row["error"]) for row in found] == [("", "the prompt is too long"), ("positive", "")]


def test_a_table_says_of_every_row_whether_it_was_cut(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"text": "good " * 20}, {"text": "good"}])
    classify_file(FakeLLM(), path, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["truncated"].to_pylist() == [True, False]


def test_true_labels_are_measured_and_kept_beside_the_predicted(tmp_path: Path) -> None:
    data = [("good", "positive"), ("good", 0), ("bad", "negative"), ("", "positive"), ("good", "neutral")]
    path = jsonl(tmp_path / "in.jsonl", [{"text": text, "label": label} for text, label in data])
    report = classify_file(FakeLLM(), path, tmp_path / "out.jsonl", label_field="label")
    assert report.metrics is not None
    assert (report.metrics.rows, report.metrics.unknown) == (3, 1)
    assert report.metrics.accuracy == pytest.approx(2 / 3)
    found = read(tmp_path / "out.jsonl")
    assert [row["input_label"] for row in found] == ["positive", 0, "negative", "positive", "neutral"]
    assert [row["label"] for row in found] == ["positive", "positive", "negative", None, "positive"]
    assert any("'label' is kept as 'input_label'" in note for note in report.notes)
    assert any("1 rows are not measured" in note and "'neutral'" in note for note in report.notes)


def test_metrics_need_no_kept_field(tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", "text,gold\ngood,positive\n")
    report = classify_file(FakeLLM(), path, tmp_path / "out.csv", label_field="gold", keep_fields="none")
    assert report.metrics is not None
    assert report.metrics.accuracy == 1.0
    assert report.notes == []
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "label,score,probs,truncated,error"


def test_what_was_classified_once_can_be_classified_again(rows: Path, tmp_path: Path) -> None:
    for suffix in ("jsonl", "csv", "parquet"):
        classify_file(FakeLLM(), rows, tmp_path / f"one.{suffix}")
        report = classify_file(FakeLLM(), tmp_path / f"one.{suffix}", tmp_path / f"two.{suffix}")
        assert report.failed == 0
        found = fields_of(tmp_path / f"two.{suffix}")
        assert [row["input_label"] for row in found] == [row["label"] for row in found]


def test_columns_of_the_prompt(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a good chat"}]
    path = jsonl(tmp_path / "in.jsonl", [{"q": "good", "a": "answer", "chat": chat}])
    llm = FakeLLM()
    classify_file(llm, path, tmp_path / "pair.jsonl", text_field="q", text_pair_field="a")
    classify_file(llm, path, tmp_path / "chat.jsonl", messages_field="chat")
    fields = {"q": "good", "a": "answer", "chat": chat}
    assert llm.seen == [
        {"prompt": "good", "text_pair": "answer", "fields": fields},
        {"messages": chat, "fields": fields},
    ]
    assert read(tmp_path / "chat.jsonl")[0]["label"] == "positive"


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_template_may_make_do_without_a_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"in.{suffix}"
    write(path, '{"title": "good"}\n' if suffix == "jsonl" else "title\ngood\n")
    report = classify_file(FakeLLM(template="Title: {title}"), path, tmp_path / "out.jsonl")
    assert report.failed == 0
    if suffix == "csv":
        with pytest.raises(JobError, match=r"no field 'text'; there is 'title'.*--text-field"):
            classify_file(FakeLLM(template="{text} of {title}"), path, tmp_path / "both.jsonl")
    else:
        assert classify_file(FakeLLM(template="{text} of {title}"), path, tmp_path / "both.jsonl").failed == 1


@pytest.mark.parametrize(
    ("options", "llm", "expected"),
    [
        ({"top_k": 1, "scores": True}, {}, ["label", "score", "probs", "top_k", "scores"]),
        ({"logits": True}, {}, ["label", "score", "probs", "logits"]),
        ({"use_activation": False}, {}, ["label", "score", "logits"]),
        ({}, {"problem_type": "multi_label_classification"}, ["labels", "probs"]),
        ({}, {"problem_type": "regression", "labels": ("x",)}, ["value"]),
        ({}, {"problem_type": "regression", "labels": ("x", "y")}, ["value"]),
        ({}, {"problem_type": None, "labels": ("x",)}, ["label", "score", "probs"]),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_kinds_of_results(
    rows: Path, tmp_path: Path, suffix: str, options: dict[str, Any], llm: dict[str, Any], expected: list[str]
) -> None:
    report = classify_file(FakeLLM(**llm), rows, tmp_path / f"out.{suffix}", keep_fields="none", **options)
    assert report.failures == []
    found = fields_of(tmp_path / f"out.{suffix}")
    assert list(found[0]) == expected + ([] if suffix == "jsonl" else ["truncated", "error"])


def test_threshold(rows: Path, tmp_path: Path) -> None:
    llm = FakeLLM(problem_type="multi_label_classification")
    for threshold, labels in ((0.5, ["negative", "positive"]), (0.6, ["positive"]), (0.99, [])):
        classify_file(llm, rows, tmp_path / "out.jsonl", threshold=threshold, overwrite=True)
        assert read(tmp_path / "out.jsonl")[0]["labels"] == labels


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"long_text": "mean"}, ConfigError, "long_text='mean'"),
        ({"truncation_side": "up"}, ConfigError, "truncation_side='up'"),
        ({"top_k": 0}, ConfigError, "top_k=0"),
        ({"threshold": 2}, ConfigError, "threshold=2"),
        ({"label_field": "id", "use_activation": False}, ConfigError, "label_field needs probabilities"),
        ({"inputs": "nothing*.jsonl"}, JobError, "no file matches"),
        ({"inputs": "in.csv", "label_field": "gold"}, JobError, "in.csv has no field 'gold'; there is 'id', 'text'"),
        ({"label_field": "txet"}, JobError, "in.jsonl has no field 'txet'; there is 'text'. Did you mean 'text'"),
        ({"inputs": "in.csv", "keep_fields": "ids"}, JobError, "Did you mean 'id'"),
        ({"output": "in.csv", "inputs": "in.csv"}, JobError, "is also an input"),
        ({"output": "none/out.csv"}, JobError, "does not exist"),
        ({"output": "out.xyz"}, ConfigError, "'xyz' of 'out.xyz' is unknown"),
    ],
)
def test_what_is_wrong_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(vllm_cls.llm, "LLM", load)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.csv", "id,text\n1,a\n")
    jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    with pytest.raises(error, match=says):
        classify_file("model", **{"inputs": "in.jsonl", "output": "out.jsonl", **options})
    assert sorted(os.listdir(tmp_path)) == ["in.csv", "in.jsonl"]


def test_a_model_by_its_name_is_loaded_with_its_options_and_closed(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_cls.llm, "LLM", FakeLLM)
    classify_file(tmp_path, rows, tmp_path / "out.jsonl", dtype="float32")
    llm = FakeLLM.made[-1]
    assert (llm.model, llm.options, llm.closed) == (str(tmp_path), {"dtype": "float32"}, True)
    with pytest.raises(ConfigError, match="dtype: options of LLM"):
        classify_file(FakeLLM(), rows, tmp_path / "no.jsonl", dtype="float32")


def test_a_field_that_no_row_has_is_said(rows: Path, tmp_path: Path) -> None:
    report = classify_file(FakeLLM(), rows, tmp_path / "out.jsonl", keep_fields="id,ids")
    assert report.notes == ["no row has the field 'ids', which was to be kept"]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "jsonl.gz"])
def test_a_label_field_that_no_row_has_is_refused(tmp_path: Path, suffix: str) -> None:
    plain = jsonl(tmp_path / "plain.jsonl", [{"text": "good", "label": "positive"}] * 3)
    path = tmp_path / f"in.{suffix}"
    classify_file(FakeLLM(labels=("x", "y")), plain, path, keep_fields="text,label", label_field="label")
    with pytest.raises(JobError, match=rf"in\.{suffix} has no field 'lable'; there is .*Did you mean"):
        classify_file(FakeLLM(), path, tmp_path / "out.jsonl", label_field="lable")
    assert not (tmp_path / "out.jsonl").exists()


def test_rows_that_lack_the_label_among_others_are_not_measured(tmp_path: Path) -> None:
    bare = jsonl(tmp_path / "bare.jsonl", [{"text": "bad"}] * 3)
    some = jsonl(tmp_path / "some.jsonl", [{"text": "bad"}] * 3 + [{"text": "good", "label": "positive"}])
    for inputs, unknown in ((some, 3), ([bare, some], 6)):
        report = classify_file(FakeLLM(), inputs, tmp_path / f"{unknown}.jsonl", label_field="label")  # type: ignore[arg-type]
        assert report.metrics is not None
        assert (report.metrics.rows, report.metrics.unknown, report.metrics.accuracy) == (1, unknown, 1.0)
        assert f"{unknown} rows are not measured" in report.notes[-1]  # and no note of a field that no row has
    for nothing in ("", "broken\n"):
        report = classify_file(
            FakeLLM(), write(bare, nothing), tmp_path / "out.jsonl", label_field="label", overwrite=True
        )
        assert report.metrics is not None and report.metrics.rows == 0


def test_a_label_field_that_no_row_of_standard_input_has_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "good", "label": "positive"}\n' * 3)))
    report = classify_file(FakeLLM(), "-", tmp_path / "out.jsonl", label_field="lable")
    assert "no row has the field 'lable', which was to be measured against" in report.notes


def test_a_closed_standard_input_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(JobError, match=r"^standard input: it is closed\.$"):
        classify_file(FakeLLM(), "-", tmp_path / "out.jsonl")


def test_a_damaged_file_leaves_the_old_output(tmp_path: Path) -> None:
    output = write(tmp_path / "out.jsonl", "old")
    path = write(tmp_path / "in.json", '[{"text": "a"}, {"text": ')
    with pytest.raises(JobError, match="row 2 is not JSON"):
        classify_file(FakeLLM(window=1), path, output, overwrite=True)
    assert output.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["in.json", "out.jsonl"]


def test_a_model_that_swallows_a_row_is_found_out(rows: Path, tmp_path: Path) -> None:
    class Lossy(FakeLLM):
        def classify_iter(self, prompts: Any, **options: Any) -> Iterator[Any]:
            return iter(list(super().classify_iter(prompts, **options))[:-1])

    with pytest.raises(JobError, match="line 5; this is a fault of vllm-cls"):
        classify_file(Lossy(), rows, tmp_path / "out.jsonl")


def test_no_rows_are_a_result_too(tmp_path: Path) -> None:
    report = classify_file(FakeLLM(), write(tmp_path / "in.csv", "id,text\n"), tmp_path / "out.csv", label_field="id")
    assert (report.rows, report.failed) == (0, 0)
    assert report.metrics is not None
    assert report.metrics.accuracy is None
    assert (tmp_path / "out.csv").read_text() == "id,text,label,score,probs,truncated,error\n"


def test_progress_is_the_share_of_the_input(rows: Path, tmp_path: Path) -> None:
    told: list[JobProgress] = []
    classify_file(FakeLLM(), rows, tmp_path / "out.jsonl", on_progress=told.append)
    assert [each.rows for each in told] == [0, 1, 2, 3, 4, 5]
    shares = [each.share for each in told if each.share is not None]
    assert shares == sorted(set(shares))
    assert shares[-1] == 1.0
