"""Files of a token classifier: the spans of each row."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.models import tiny
from vllm_cls import LLM, ConfigError, classify_file

TEXTS = ["The film was good and the music was great.", "中文 plain", "good " * 200, "yes"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(str(tiny.token_classifier("bert", tmp_path_factory.mktemp("model"))))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    rows: list[dict[str, Any]] = [{"id": index, "text": text} for index, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": 9, "text": ""}]))
    return path


def expected(llm: LLM, aggregation: str) -> list[list[dict[str, Any]]]:
    outputs = llm.token_classify(
        TEXTS, aggregation_strategy=aggregation, tokenization_kwargs={"truncate_prompt_tokens": -1}
    )
    return [[asdict(each) for each in output.outputs.spans] for output in outputs]


@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
def test_json_lines(llm: LLM, source: Path, tmp_path: Path, aggregation: str) -> None:
    report = classify_file(llm, source, tmp_path / "out.jsonl", aggregation=aggregation, keep_fields="id")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (report.rows, report.failed, report.truncated) == (5, 1, 1)
    for row, spans in zip(rows, expected(llm, aggregation), strict=False):
        assert [list(each) for each in row["spans"]] == [list(each) for each in spans]
        for found, each in zip(row["spans"], spans, strict=True):
            assert found.pop("score") == pytest.approx(each.pop("score"), abs=1e-5)
            assert found == each
    assert [row.get("truncated") for row in rows] == [None, None, True, None, None]
    assert rows[4]["spans"] is None and "empty" in rows[4]["error"]
    assert list(rows[0]) == ["id", "spans"]


def test_tables(llm: LLM, source: Path, tmp_path: Path) -> None:
    classify_file(llm, source, tmp_path / "out.parquet")
    classify_file(llm, source, tmp_path / "out.csv", long_text="error")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [each["word"] for each in rows[0]["spans"]] == [each["word"] for each in expected(llm, "simple")[0]]
    assert rows[4]["spans"] is None and rows[2]["truncated"] is True
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [each["start"] for each in json.loads(table[0]["spans"])] == [each["start"] for each in rows[0]["spans"]]
    assert table[2]["spans"] == "" and "maximum" in table[2]["error"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 2}, "top_k"),
        ({"label_field": "id"}, "label_field"),
        ({"text_pair_field": "id"}, "text_pair_field"),
        ({"aggregation": "frist"}, "frist"),
    ],
)
def test_options_of_texts_are_refused(
    llm: LLM, source: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        classify_file(llm, source, tmp_path / "out.jsonl", **options)
    assert not (tmp_path / "out.jsonl").exists()


def test_other_places_for_other_models(llm: LLM, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jsonl"):
        classify_file(llm, source, tmp_path / "out.txt")
    texts = LLM(str(tiny.classifier("bert", tmp_path / "texts")))
    with pytest.raises(ConfigError, match="token classifiers"):
        classify_file(texts, source, tmp_path / "out.jsonl", aggregation="first")
