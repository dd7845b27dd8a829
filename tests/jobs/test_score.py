from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs.fake import FakeLLM
from tests.jobs.files import jsonl, write
from tests.models import tiny
from vllm_cls import LLM, convert
from vllm_cls.errors import ConfigError, JobError
from vllm_cls.jobs.score import score_file


def reranker(**options: Any) -> Any:
    return FakeLLM(labels=("relevant",), problem_type=None, **options)


ROWS = [
    {"id": 1, "query": "good", "document": "d1", "score": 7},
    {"id": 2, "query": "bad", "document": "d2"},
    {"id": 3, "query": "bad"},
    {"id": 4, "query": "good NAN", "document": "d4"},
]


def test_a_score_a_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", ROWS)
    report = score_file(reranker(), path, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert list(rows[0]) == ["id", "query", "document", "input_score", "score"]
    assert [row["score"] for row in rows[:2]] == [pytest.approx(1 / (1 + math.exp(-x))) for x in (2, -1)]
    assert rows[2]["score"] is None and "no field 'document'" in rows[2]["error"]
    assert rows[3]["score"] is None and "not finite" in rows[3]["error"]
    assert (report.rows, report.failed) == (4, 2)


def test_options_reach_the_prompts(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"q": "good", "d": "x", "instruction": "own", "extra": 1}])
    llm = reranker()
    options: dict[str, Any] = {"text_field": "q", "text_pair_field": "d", "use_activation": False}
    score_file(llm, path, tmp_path / "out.csv", max_tokens_per_doc=5, **options)
    (prompt,) = llm.seen
    assert (prompt["prompt"], prompt["text_pair"]) == ("good", "x")
    assert (prompt["max_tokens_per_query"], prompt["max_tokens_per_doc"]) == (0, 5)
    assert prompt["fields"] == {"q": "good", "d": "x", "instruction": "own", "extra": 1}
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == "good,x,own,1,2.0,false,"
    score_file(llm, path, tmp_path / "again.csv", instruction="of the call", **options)
    assert llm.seen[-1]["fields"]["instruction"] == "of the call"


def test_formats(tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", "query,document\ngood,x\nbad,y\n")
    score_file(reranker(), path, tmp_path / "out.parquet", keep_fields="none")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("score").type == pa.float64() and table.column_names[0] == "score"
    score_file(reranker(), path, tmp_path / "out.txt")
    assert len((tmp_path / "out.txt").read_text().splitlines()) == 2


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", ROWS)
    with pytest.raises(ConfigError, match="num_labels 1; this one has 2"):
        score_file(FakeLLM(), path, tmp_path / "out.jsonl")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no place"):
        score_file(reranker(), path, tmp_path / "out.jsonl", instruction="BOOM")
    with pytest.raises(JobError, match="no field 'document'"):
        score_file(reranker(), write(tmp_path / "in.csv", "query\ngood\n"), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_prompt_template_of_other_columns_is_not_that_of_pairs(tmp_path: Path) -> None:
    lm = tiny.causal_lm("qwen2", tmp_path / "lm", max_position_embeddings=256)
    template = "Q: {{ query }} D: {{ document }} good?"
    convert(
        str(lm), tmp_path / "ranker", head="two-way", label_tokens="no= bad,yes= good",
        prompt_template="Query: {query} Document: {document}", score_template=template,
    )  # fmt: skip
    path = write(tmp_path / "in.jsonl", '{"query": "a film", "document": "The film was good"}\n')
    report = score_file(str(tmp_path / "ranker"), path, tmp_path / "out.jsonl")
    assert report.failed == 0
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    with LLM(str(tmp_path / "ranker")) as llm:
        (expected,) = llm.score("a film", "The film was good")
    assert row["score"] == pytest.approx(expected.outputs.score, abs=1e-6)
