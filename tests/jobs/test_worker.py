"""A worker computes the rows of a part, and what it is sent and gives back can go to another process."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.fake import FakeLLM
from vllm_cls.calls.scoring import ScoreOptions
from vllm_cls.jobs.classify import classify_file
from vllm_cls.jobs.formats.files import find_sources
from vllm_cls.jobs.formats.readers import read_rows
from vllm_cls.jobs.options import JobOptions
from vllm_cls.jobs.pipeline.answers import RowWorker
from vllm_cls.jobs.rows import PromptFields
from vllm_cls.jobs.score import PairFields, ScoreColumns, score_file

TEXTS = ("good", "bad", "", "BOOM", "good " * 20)


def sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("score", [False, True])
def test_a_worker_elsewhere_gives_what_the_job_writes(tmp_path: Path, score: bool) -> None:
    text, pair = ("query", "document") if score else ("text", None)
    rows = [{text: each} | ({} if pair is None else {pair: "document"}) for each in TEXTS]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = ("yes",) if score else ("negative", "positive")
    if score:
        score_file(FakeLLM(labels=labels), source, tmp_path / "out.jsonl")
        options = JobOptions(PairFields(text, pair, options=ScoreOptions()), ScoreColumns)
    else:
        classify_file(FakeLLM(labels=labels), source, tmp_path / "out.jsonl", top_k=1)
        options = JobOptions(PromptFields(text), top_k=1)
    worker = RowWorker(FakeLLM(labels=labels), sent(options))  # type: ignore[arg-type]
    assert sent(worker.plan) == worker.plan
    part = sent(list(read_rows(find_sources(source))))
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, results, wanted in zip(
        rows, sent([each.results for each in worker.compute(iter(part))]), written, strict=True
    ):
        found = {**row, **(results.columns or worker.plan.columns.empty())}
        found |= {"truncated": True} if results.truncated else {}
        assert found | ({} if results.error is None else {"error": results.error}) == wanted
    assert [json.loads(line).get("error") is None for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        True, True, False, False, True,
    ]  # fmt: skip
