"""Labels of a file mean the same to whatever reads them: fitted, calibrated and measured alike, however they are written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from safetensors.torch import load_file
from sklearn.preprocessing import MultiLabelBinarizer

from tests.jobs.fake import FakeLLM
from tests.models import tiny
from vllm_cls import LLM, ConfigError, classify_file, convert
from vllm_cls.outputs import ClassificationOutput, ClassificationRequestOutput

MULTI = "multi_label_classification"
WORDS = {"a": "good", "b": "boring", "c": "password"}
SETS = [["a", "c"], ["b"], ["a"], [], ["b", "c"], ["a", "b", "c"]] * 10
TEXTS = [f"{' '.join(WORDS[each] for each in labels)} film {number}" for number, labels in enumerate(SETS)]


def vectors(labels: list[str]) -> list[int]:
    row: list[int] = MultiLabelBinarizer(classes=["a", "b", "c"]).fit_transform([labels])[0].tolist()
    return row


WRITTEN: dict[str, tuple[str, Callable[[list[str]], Any]]] = {
    "names": ("jsonl", lambda labels: labels),
    "vectors": ("jsonl", vectors),
    "vectors of bools": ("jsonl", lambda labels: [bool(each) for each in vectors(labels)]),
    "indices": ("jsonl", lambda labels: ["abc".index(each) for each in labels]),
    "commas": ("csv", lambda labels: ",".join(labels)),
    "blanks": ("csv", lambda labels: " ; ".join(labels)),
    "JSON": ("csv", json.dumps),
    "JSON vectors": ("csv", lambda labels: json.dumps(vectors(labels))),
    "vectors in cells": ("csv", lambda labels: ",".join(map(str, vectors(labels)))),
    "Parquet": ("parquet", lambda labels: labels),
    "Parquet vectors": ("parquet", vectors),
}


def file_of(path: Path, texts: list[str], labels: list[Any]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts, "label": labels}), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    else:
        rows = zip(texts, labels, strict=True)
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


def written(folder: Path, how: str) -> Path:
    suffix, write = WRITTEN[how]
    return file_of(folder / f"rows.{suffix}", TEXTS, [write(labels) for labels in SETS])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base_model("bert", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def fitted(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the labels by their names."""
    folder = tmp_path_factory.mktemp("fitted")
    report = convert(
        str(bert),
        folder / "out",
        head="fit",
        train=str(written(folder, "names")),
        problem_type=MULTI,
        labels=list("abc"),
    )
    assert report.report["accuracy"] > 0.9 > report.report["majority"]
    return folder / "out"


@pytest.mark.parametrize(
    ("how", "named"),
    [
        *((how, True) for how in ("vectors", "indices", "commas", "blanks", "JSON", "Parquet vectors")),
        *((how, False) for how in ("vectors", "commas", "JSON", "JSON vectors")),
    ],
)
def test_a_head_is_fitted_alike(bert: Path, fitted: Path, tmp_path: Path, how: str, named: bool) -> None:
    labels = {"labels": ["a", "b", "c"]} if named else {}
    path = written(tmp_path, how)
    report = convert(str(bert), tmp_path / "out", head="fit", train=str(path), problem_type=MULTI, **labels)
    assert report.report["rows"] == len(SETS)  # also those without a label
    unnamed = [f"LABEL_{index}" for index in range(3)] if "ector" in how else ["a", "b", "c"]
    assert report.labels == (["a", "b", "c"] if named else unnamed)
    tensors, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", fitted))
    assert all(tensors[name].equal(expected[name]) for name in expected)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").problem_type == MULTI


class Right(FakeLLM):
    """A model that is right on every text."""

    def _answer(self, prompt: dict[str, Any], use_activation: bool | None, truncate: bool) -> Any:
        probs = [0.9 if self.has(name, prompt["prompt"].split()) else 0.1 for name in self.id2label.values()]
        output = ClassificationOutput(probs, probs, self.id2label, probs)
        return ClassificationRequestOutput("0", output, [1])

    def has(self, name: str, words: list[str]) -> bool:
        return WORDS.get(name, name) in words


@pytest.mark.parametrize("how", WRITTEN)
def test_a_model_that_is_right_is_measured_so(tmp_path: Path, how: str) -> None:
    llm = Right(labels=("a", "b", "c"), problem_type=MULTI)
    report = classify_file(llm, written(tmp_path, how), tmp_path / "out.jsonl", label_field="label")  # type: ignore[arg-type]
    assert report.metrics is not None
    assert (report.metrics.rows, report.metrics.unknown, report.metrics.accuracy) == (len(SETS), 0, 1.0)
    assert [each.support for each in report.metrics.per_label] == [30, 30, 30]


@pytest.mark.parametrize("how", ["vectors", "commas", "JSON"])
def test_a_head_is_calibrated_alike(fitted: Path, tmp_path: Path, how: str) -> None:
    names, other = written(tmp_path, "names"), written(tmp_path, how)
    told = [
        convert(str(fitted), tmp_path / f"out {place}", calibrate=str(path)).report["calibration"]
        for place, path in enumerate((names, other))
    ]
    assert told[0] == told[1] and told[0]["rows"] == len(SETS) and told[0]["accuracy_before"] > 0.5


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("write", [int, float, str])
def test_five_stars(tmp_path: Path, first: int, write: Callable[[int], Any]) -> None:
    """0 to 4 are the indices of "1" to "5", since no label is called "0"; 1 to 5 are their names."""
    stars, count = [number % 5 for number in range(60)], ("one", "two", "three", "four", "five")
    texts = [f"{number + 1} {count[number]}" for number in stars]
    path = file_of(tmp_path / "rows.jsonl", texts, [write(number + first) for number in stars])
    llm = Right(labels=("1", "2", "3", "4", "5"))
    report = classify_file(llm, path, tmp_path / "out.jsonl", label_field="label")  # type: ignore[arg-type]
    assert report.metrics is not None and (report.metrics.rows, report.metrics.accuracy) == (60, 1.0)
    assert any("read as indices" in note for note in report.notes) is (first == 0)


def test_stars_are_fitted_and_calibrated_as_they_are_measured(bert: Path, tmp_path: Path) -> None:
    stars = [number % 5 for number in range(60)]
    texts = [f"{'good ' * number}film" for number in stars]
    by_index = file_of(tmp_path / "index.jsonl", texts, stars)
    by_name = file_of(tmp_path / "name.csv", texts, [number + 1 for number in stars])
    weights, told = [], []
    for path in (by_index, by_name):
        out = tmp_path / path.stem
        report = convert(str(bert), out, head="fit", train=str(path), labels=["1", "2", "3", "4", "5"])
        weights.append(load_file(out / "model.safetensors")["classifier.weight"])
        again = file_of(tmp_path / f"again-{path.name}", texts, stars if path == by_index else [n + 1 for n in stars])
        told.append(convert(str(out), tmp_path / f"{path.stem} out", calibrate=str(again)).report["calibration"])
        with LLM(str(out)) as llm:
            metrics = classify_file(llm, path, tmp_path / f"{path.stem}.out.jsonl", label_field="label").metrics
        assert metrics is not None and metrics.accuracy == 1.0
        assert any("read as indices" in warning for warning in report.warnings) is (path == by_index)
    assert weights[0].equal(weights[1])
    assert told[0] == told[1] and told[0]["accuracy_before"] == 1.0


def test_one_label_is_calibrated_as_it_is_measured(tmp_path: Path) -> None:
    lm = tiny.causal_lm("qwen2", tmp_path / "lm")
    texts = [f"The film number {index} was {word}" for index in range(10) for word in ("good", "bad")]
    options: dict[str, Any] = {"head": "two-way", "label_tokens": "no= bad,yes= good"}
    convert(str(lm), tmp_path / "plain", **options)
    told, measured = [], []
    for name, labels in (("names", ["yes", "no"]), ("numbers", [1, 0]), ("bools", [True, False])):
        path = file_of(tmp_path / f"{name}.jsonl", texts, [labels[i % 3 > 0] for i in range(len(texts))])
        report = convert(str(lm), tmp_path / name, calibrate=str(path), **options)
        told.append(report.report["calibration"])
        with LLM(str(tmp_path / "plain")) as llm:
            measured.append(classify_file(llm, path, tmp_path / f"{name}.out.jsonl", label_field="label").metrics)
    assert told[0] == told[1] == told[2]
    for metrics in measured:
        assert metrics is not None and metrics.rows == 20
        assert metrics.accuracy == pytest.approx(told[0]["accuracy_before"])
        assert metrics.log_loss == pytest.approx(told[0]["log_loss_before"], abs=1e-5)
    with pytest.raises(ConfigError, match=r"'yes' or 1 is true .* and 0 or a single other value"):
        path = file_of(tmp_path / "three.jsonl", texts, [("yes", "no", "maybe")[i % 3] for i in range(len(texts))])
        convert(str(lm), tmp_path / "three", calibrate=str(path), **options)


def test_blanks_are_no_part_of_a_name_and_case_is_said(bert: Path, tmp_path: Path) -> None:
    texts = [f"{word} film {number}" for number in range(8) for word in ("good", "great", "boring")]
    path = file_of(tmp_path / "rows.csv", texts, [" pos", "pos ", "neg"] * 8)
    report = convert(str(bert), tmp_path / "out", head="fit", train=str(path))
    assert report.labels == ["neg", "pos"] and report.warnings == []
    path = file_of(tmp_path / "cases.csv", texts, [" pos", "Pos ", "neg"] * 8)
    report = convert(str(bert), tmp_path / "cases", head="fit", train=str(path))
    assert report.labels == ["Pos", "neg", "pos"]
    assert report.warnings == ["the labels 'Pos' and 'pos' differ in upper and lower case only, and are two labels"]
    with LLM(str(tmp_path / "out")) as llm:
        report_of_job = classify_file(llm, path, tmp_path / "out.jsonl", label_field="label")
    assert report_of_job.metrics is not None and (report_of_job.metrics.rows, report_of_job.metrics.unknown) == (16, 8)
    assert any("'Pos ' differs from 'pos' in upper and lower case" in note for note in report_of_job.notes)


@pytest.mark.parametrize(
    ("labels", "options", "says"),
    [
        (
            ["a", "b", "zz"],
            {"labels": ["a", "b"]},
            r"the label 'zz', which --labels \(a, b\) does not name \(.*line 3\)",
        ),
        (["a", "b", "A"], {"labels": ["a", "b"]}, r"Did you mean 'a'\?"),
        ([0, 1, 7], {"labels": ["a", "b"]}, r"the label 7, which --labels \(a, b\)"),
        ([0, 1, 2], {"labels": ["1", "2"]}, r"the label 0, which --labels \(1, 2\)"),
        ([["a"], ["b"], ["a", "b"]], {}, r"a label is the list \['a'\]; several labels .*--problem-type multi_label"),
        (['["a"]', "b", "a"], {}, r"""a label is the list '\["a"\]'; several labels"""),
        ([{"a": 1}, "a", "b"], {}, r"the label \{'a': 1\}"),
        ([["a"], ["zz"], ["b"]], {"labels": ["a", "b"], "problem_type": MULTI}, r"the labels \['zz'\], .*line 2\)"),
        ([[1, 0, 1], [0, 1, 1], [1, 1, 1]], {"labels": ["a", "b"], "problem_type": MULTI}, "0 or 1 for each of them"),
        ([[1, 0, 1], [0, 1, 1], [1, 1]], {"problem_type": MULTI}, "0 or 1 for each of them"),
        (["a,b", "a;b", "a"], {"problem_type": MULTI}, "which of these separates labels is not clear"),
        ([[], [], []], {"problem_type": MULTI}, "no row has a label"),
        ([1.5, "much", 2], {"problem_type": "regression"}, r"must be a number, and one is 'much' \(.*line 2\)"),
        (["1,5", "2,5", "1"], {"problem_type": "regression"}, "must be a number, and one is '1,5'"),
        ([[1.0], [2.0], [3.0]], {"problem_type": "regression"}, r"one is \[1.0\]"),
        ([1.5, 2.5, 2], {"problem_type": "regression", "labels": ["x", "y"]}, "one number a row, and --labels names 2"),
        (["a", "a", "a"], {}, "there must be two labels"),
        ([0, 1, 0], {"labels": ["a"]}, "there must be two labels"),
    ],
)
def test_labels_that_cannot_be_are_refused(
    bert: Path, tmp_path: Path, labels: list[Any], options: dict[str, Any], says: str
) -> None:
    path = file_of(tmp_path / "rows.jsonl", [f"film {number}" for number in range(12)], labels * 4)
    with pytest.raises(ConfigError, match=says):
        convert(str(bert), tmp_path / "out", head="fit", train=str(path), **options)
    assert not (tmp_path / "out").exists()


VECTORS = [[[1, 0, 1], [0, 1, 0], [0, 0, 1]][number % 3] for number in range(40)]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("labels", [None, ["a", "b", "c"]])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ([1, 0], r"\[1, 0\]'?, whose length is 2; the other rows are vectors of 3 labels, with a 0 or 1"),
        ([1, 1, 0, 0], r"\[1, 1, 0, 0\]'?, whose length is 4; the other rows are vectors of 3 labels"),
        ([0, 0.7, 1], r"\[0, 0.7, 1\]'?, which are not all 0 or 1; the other rows are vectors of 3 labels"),
        ([1, None, 0], r"\[1, (None|null), 0\]'?, which are not all 0 or 1; the other rows are vectors of 3 labels"),
    ],
)
def test_a_vector_that_is_wrong_is_named_with_its_row(
    bert: Path, tmp_path: Path, wrong: list[Any], says: str, labels: list[str] | None, suffix: str
) -> None:
    values: list[Any] = [*VECTORS[:30], wrong, *VECTORS[31:]]
    values = [json.dumps(value) for value in values] if suffix == "csv" else values
    path = file_of(tmp_path / f"rows.{suffix}", [f"film {number}" for number in range(40)], values)
    line = 31 if suffix == "jsonl" else 32
    with pytest.raises(ConfigError, match=rf"--train has the labels '?{says}.*rows\.{suffix}, \w+ {line}\)") as error:
        convert(str(bert), tmp_path / "out", head="fit", train=str(path), problem_type=MULTI, labels=labels)
    assert "--labels" not in str(error.value)


def test_a_message_names_what_names_the_labels(bert: Path, fitted: Path, tmp_path: Path) -> None:
    texts = [f"film {number}" for number in range(12)]
    path = file_of(tmp_path / "rows.jsonl", texts, [["a"], ["b"], ["zz"]] * 4)
    with pytest.raises(ConfigError, match=r"\['zz'\], which the model's labels \(a, b, c\) do not name.*line 3\)"):
        convert(str(fitted), tmp_path / "out", calibrate=str(path))
    path = file_of(tmp_path / "short.jsonl", texts, [[1, 0, 1], [0, 1, 0], [1, 0]] * 4)
    with pytest.raises(ConfigError, match=r"--calibrate has .*\[1, 0\], whose length is 2; .* of 3 labels.*line 3\)"):
        convert(str(fitted), tmp_path / "out", calibrate=str(path))
    path = file_of(tmp_path / "objects.jsonl", texts, ["a", "b", {"a": 1}] * 4)
    with pytest.raises(ConfigError, match=r"\{'a': 1\}, which the labels of the other rows \(a, b\) do not name"):
        convert(str(bert), tmp_path / "out", head="fit", train=str(path))
    path = file_of(tmp_path / "stars.jsonl", texts, [0, 1, 0, 2, 0, 5] * 2)
    says = r"the label 5, which --labels \(1, 2, 3, 4, 5\) does not name .*line 6\).* Note: .* read as indices"
    with pytest.raises(ConfigError, match=says):
        convert(str(bert), tmp_path / "out", head="fit", train=str(path), labels=["1", "2", "3", "4", "5"])


def test_rows_without_a_label_are_left_out_and_empty_lists_are_not(bert: Path, tmp_path: Path) -> None:
    path = file_of(tmp_path / "rows.csv", TEXTS, [",".join(labels) for labels in SETS])
    report = convert(str(bert), tmp_path / "multi", head="fit", train=str(path), problem_type=MULTI)
    assert (report.report["rows"], report.warnings) == (60, [])
    report = convert(str(bert), tmp_path / "single", head="fit", train=str(path))
    assert report.report["rows"] == 50
    (warning,) = report.warnings
    assert "10 rows" in warning and "the field 'label' is empty" in warning and "Did you mean" not in warning
    path = file_of(tmp_path / "rows.jsonl", TEXTS, [labels or None for labels in SETS])
    report = convert(str(bert), tmp_path / "null", head="fit", train=str(path), problem_type=MULTI)
    assert report.report["rows"] == 50 and "the field 'label' is null" in report.warnings[0]


def test_semicolons_and_numbers_with_points(bert: Path, tmp_path: Path) -> None:
    """A file as a spreadsheet writes it, for every command that reads one."""
    (tmp_path / "rows.csv").write_bytes(
        b"\xef\xbb\xbftext;label\r\n" + b"".join(f"a film, {i};{('pos', 'neg')[i % 2]}\r\n".encode() for i in range(40))
    )
    train, told = str(tmp_path / "rows.csv"), "rows.csv: its columns are separated by semicolons"
    report = convert(str(bert), tmp_path / "out", head="fit", train=train)
    assert report.report["rows"] == 40 and report.labels == ["neg", "pos"]
    assert any(told in warning for warning in report.warnings)
    (tmp_path / "again.csv").write_bytes((tmp_path / "rows.csv").read_bytes())
    report = convert(str(tmp_path / "out"), tmp_path / "two", calibrate=str(tmp_path / "again.csv"))
    assert any("again.csv: its columns" in warning for warning in report.warnings)
    with LLM(str(tmp_path / "out")) as llm:
        job = classify_file(llm, tmp_path / "rows.csv", tmp_path / "out.csv", label_field="label")
    assert job.failed == 0 and job.metrics is not None and job.metrics.rows == 40
    assert any(told in note for note in job.notes)
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith('"a film, 0",pos,')
