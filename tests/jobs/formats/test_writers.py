from __future__ import annotations

import csv
import datetime
import decimal
import errno
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.files import fields_of, rows_of
from vllm_cls.errors import JobError
from vllm_cls.jobs.formats import tables
from vllm_cls.jobs.formats.files import find_target
from vllm_cls.jobs.formats.tables import OutputSchema
from vllm_cls.jobs.pipeline.output import open_output

from .test_readers import VALUES

RESULTS = {"label": str, "score": float}
GOOD = {"label": "a", "score": 0.5}
ANY = OutputSchema(None, RESULTS)


def write(path: Path, records: Iterable[Mapping[str, Any]], layout: OutputSchema = ANY) -> list[str | None]:
    with open_output(find_target(path, []), layout) as writer:
        return [writer.write(record) for record in records]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


RECORDS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3).map(lambda fields: {**fields, **GOOD}), max_size=4)


@given(RECORDS, st.sampled_from(["jsonl", "json", "jsonl.gz", "json.zst"]))
def test_json_round_trip(folder: Path, records: list[dict[str, Any]], suffix: str) -> None:
    path = folder / f"a.{suffix}"
    assert write(path, records) == [None] * len(records)
    assert fields_of(path) == records


TEXTS = st.dictionaries(st.sampled_from("xyz"), st.text(st.characters(exclude_categories=["Cs"])), min_size=1)


@given(st.lists(TEXTS, min_size=1, max_size=4), st.sampled_from(["csv", "tsv", "csv.gz", "tsv.zst"]))
def test_table_round_trip(folder: Path, records: list[dict[str, Any]], suffix: str) -> None:
    path = folder / f"a.{suffix}"
    assert write(path, [{**record, **GOOD} for record in records]) == [None] * len(records)
    names = list(dict.fromkeys(name for record in records for name in record))
    assert fields_of(path) == [
        {
            **{name: record.get(name, "") for name in names},
            "label": "a",
            "score": "0.5",
            "truncated": "false",
            "error": "",
        }
        for record in records
    ]


def test_json_holds_what_json_lacks_as_text(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.timezone.utc)
    write(tmp_path / "a.jsonl", [{"t": moment, "n": decimal.Decimal("1.10"), "raw": b"\xff", "half": "\ud83d"}])
    (found,) = fields_of(tmp_path / "a.jsonl")
    assert found == {"t": "2024-02-29T12:00:00+00:00", "n": "1.10", "raw": "/w==", "half": "\ud83d"}


def test_unicode_is_written_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "Grüße 你好 😀"}])
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == '{"text": "Grüße 你好 😀"}\n'


def test_an_empty_array_is_json(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [])
    assert json.loads((tmp_path / "a.json").read_text()) == []


def test_cells_of_a_table(tmp_path: Path) -> None:
    record = {"n": None, "yes": True, "one": 1, "list": ["é", None], "map": {"a": 1.5}, "text": 'say "x",\nand', **GOOD}
    write(tmp_path / "a.csv", [record])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        header, cells = csv.reader(file)
    assert header == ["n", "yes", "one", "list", "map", "text", "label", "score", "truncated", "error"]
    assert cells == ["", "true", "1", '["é", null]', '{"a": 1.5}', 'say "x",\nand', "a", "0.5", "false", ""]


def test_carriage_returns_are_quoted(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [{"x": "a\rb", "error": "c\r"}], OutputSchema({"x": "x"}, {}))
    assert [row.fields for row in rows_of(tmp_path / "a.csv")] == [{"x": "a\rb", "truncated": "false", "error": "c\r"}]
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file, strict=True), {}).get("x") == "a\rb"


def test_a_table_whose_columns_are_known_begins_with_them(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [], OutputSchema({"id": "id", "label": "input_label"}, RESULTS))
    assert (tmp_path / "a.csv").read_text() == "id,input_label,label,score,truncated,error\n"


def test_a_field_that_comes_too_late_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "FIRST_ROWS", 2)
    said = write(tmp_path / "a.csv", [{"a": 1, **GOOD}, {"b": 2, **GOOD}, {"c": 3, "a": 4, **GOOD}, {"a": 5, **GOOD}])
    assert said == [None, None, "the field 'c' is not among the columns, which the first rows decide", None]
    found = fields_of(tmp_path / "a.csv")
    assert [row["a"] for row in found] == ["1", "", "4", "5"]
    assert [row["error"] for row in found] == ["", "", said[2], ""]
    assert found[2]["label"] == "a"


@pytest.mark.parametrize(
    ("results", "records", "lines"),
    [
        (["label", "score"], [GOOD, {"label": None, "score": None, "error": "x"}], ["a", ""]),
        (["label", "score"], [{"label": None, "score": 0.25}], ["0.25"]),
        (["labels", "probs"], [{"labels": ["a", "b"], "probs": []}, {"labels": [], "probs": []}], ["a,b", ""]),
        (["value"], [{"value": -1.5}, {"value": 0.0}], ["-1.5", "0.0"]),
        (["label"], [{"label": "two\nlines"}], ["two lines"]),
    ],
)
def test_text_is_a_label_on_each_line(
    tmp_path: Path, results: list[str], records: list[dict[str, Any]], lines: list[str]
) -> None:
    write(tmp_path / "a.txt", records, OutputSchema(None, dict.fromkeys(results)))
    assert (tmp_path / "a.txt").read_text().split("\n") == [*lines, ""]
    assert len(rows_of(tmp_path / "a.txt")) == len(records)


def test_standard_output_is_json_lines_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BufferedWriter(raw)))  # type: ignore[type-var]
    with open_output(find_target(None, []), ANY) as writer:
        writer.write(GOOD)
        assert json.loads(raw.getvalue()) == GOOD


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "a.csv", "a.tsv.zst", "a.parquet", "a.txt"])
def test_an_error_leaves_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(RuntimeError, match="mine"), open_output(find_target(tmp_path / name, []), ANY) as writer:
        writer.write(GOOD)
        raise RuntimeError("mine")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_said_of_the_output(tmp_path: Path) -> None:
    target = find_target(tmp_path / "a.jsonl", [])
    with pytest.raises(JobError, match=r"a\.jsonl cannot be written: No space left"), open_output(target, ANY):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ConnectionError), open_output(target, ANY):
        raise ConnectionError("not of the output")


class Loud:
    """A plugin's writer: the labels in capitals."""

    def __init__(self, path: str) -> None:
        self._path, self._text = Path(path), ""

    def __enter__(self) -> Loud:
        return self

    def write(self, record: Mapping[str, Any]) -> None:
        self._text += record["label"].upper()

    def __exit__(self, *_: object) -> None:
        self._path.write_text(self._text)


def test_writers_of_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Registry:
        def collect(self, hook: str) -> dict[str, Any]:
            return {"vcls_writers": {"loud": Loud}}[hook]

    monkeypatch.setattr("vllm_cls.registry.registry", Registry)
    assert write(tmp_path / "a.loud", [GOOD, GOOD]) == [None, None]
    assert (tmp_path / "a.loud").read_text() == "AA"
