"""`decide_file` and `vcls decide`: rows are states, answers are columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from click.testing import CliRunner

from tests.decide.chat_models import QUESTIONS, assert_same, chat_model
from tests.server.served import served
from vllm_cls import LLM, Client, ConfigError, decide_file
from vllm_cls.cli.main import vcls
from vllm_cls.jobs.decide import DecisionColumns, DecisionFields, JobOptions, read_questions

ASKED = {name: QUESTIONS[name] for name in ("refund", "tone", "urgency")}
ROWS: list[dict[str, Any]] = [
    {"id": index, "body": f"message {index} " + "word " * index, "mood": mood, "paid": paid, "level": index % 3}
    for index, (mood, paid) in enumerate([("calm", True), ("angry", False), ("sad", True), ("none", True)])
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model("llama", tmp_path_factory.mktemp("decide") / "chat")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), convert="decide") as opened:
        yield opened


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _columns(answers: Any) -> dict[str, Any]:
    return {
        "refund": answers["refund"]["noul"],
        "tone": answers["tone"]["choice"],
        "tone_confidence": answers["tone"]["confidence"],
        "tone_probabilities": answers["tone"]["probabilities"],
        "urgency": answers["urgency"]["score"],
        "urgency_confidence": answers["urgency"]["confidence"],
        "urgency_probabilities": answers["urgency"]["probabilities"],
    }


def _most(probabilities: dict[str, float]) -> str:
    return max(probabilities, key=probabilities.__getitem__)


@pytest.mark.parametrize("field", [None, "body"])
def test_each_row_is_a_state(llm: LLM, rows: Path, tmp_path: Path, field: str | None) -> None:
    out = tmp_path / "out.jsonl"
    report = decide_file(llm, rows, out, questions=ASKED, state_field=field)
    expected = llm.decide([{"state": row if field is None else row[field], "questions": ASKED} for row in ROWS])
    assert (report.rows, report.failed) == (4, 0)
    assert_same(_read(out), [{**row, **_columns(each)} for row, each in zip(ROWS, expected, strict=True)], 1e-6)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables(llm: LLM, rows: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out.{suffix}"
    decide_file(llm, rows, out, questions=ASKED, state_field="body", keep_fields="id")
    expected = [_columns(each) for each in llm.decide([{"state": row["body"], "questions": ASKED} for row in ROWS])]
    if suffix == "csv":
        with out.open() as file:
            found = [
                {name: value if name == "tone" else json.loads(value) for name, value in row.items() if value}
                for row in csv.DictReader(file)
            ]
    else:
        found = pyarrow.parquet.read_table(out).to_pylist(maps_as_pydicts="strict")
    assert all(not row.pop("error", None) and not row.pop("truncated", None) for row in found)
    assert_same(found, [{"id": index, **row} for index, row in enumerate(expected)], 1e-6)


def test_bad_rows_keep_their_place(llm: LLM, tmp_path: Path) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text(
        '{"body": "x"}\n{"other": 1}\nnot json\n' + json.dumps({"body": "long " * 2000}) + '\n{"body": "y"}\n'
    )
    report = decide_file(llm, file, out, questions=ASKED, state_field="body")
    found = _read(out)
    assert (report.rows, report.failed) == (5, 3)
    assert [row.get("error") is None for row in found] == [True, False, False, False, True]
    assert "no field 'body'" in found[1]["error"] and "maximum context length" in found[3]["error"]
    assert found[3]["tone"] is None and found[3]["tone_probabilities"] is None


@pytest.mark.parametrize(
    ("label_field", "right"),
    [
        ("tone=mood", lambda row, answer: row["mood"] == answer["tone"]["choice"]),
        ("refund=paid", lambda row, answer: row["paid"] == (answer["refund"]["noul"] > 0.5)),
        ("urgency=level", lambda row, answer: str(row["level"]) == _most(answer["urgency"]["probabilities"])),
    ],
)  # fmt: skip
def test_measured(llm: LLM, rows: Path, tmp_path: Path, label_field: str, right: Any) -> None:
    report = decide_file(llm, rows, tmp_path / "out.jsonl", questions=ASKED, label_field=label_field)
    hidden = label_field.partition("=")[2]
    states = [{name: value for name, value in row.items() if name != hidden} for row in ROWS]
    expected = llm.decide([{"state": state, "questions": ASKED} for state in states])
    assert_same(
        [row["refund"] for row in _read(tmp_path / "out.jsonl")], [each["refund"]["noul"] for each in expected], 1e-6
    )
    known = [(row, each) for row, each in zip(ROWS, expected, strict=True) if hidden != "mood" or row["mood"] != "none"]
    assert report.metrics is not None
    assert report.metrics.accuracy == pytest.approx(sum(right(*pair) for pair in known) / len(known))
    assert report.metrics.unknown == len(ROWS) - len(known)


def test_a_job_goes_on_only_with_the_same_questions() -> None:
    noted = JobOptions(DecisionFields(None, questions=ASKED), answers=DecisionColumns(ASKED)).noted()
    assert json.loads(json.dumps(noted))["fields"]["questions"] == ASKED


def test_a_server_answers(llm: LLM, rows: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    rows.write_text(rows.read_text() + json.dumps({"body": "long " * 2000}) + "\n")
    decide_file(llm, rows, here, questions=ASKED)
    with served(llm) as url, Client(url) as client:
        report = decide_file(client, rows, there, questions=ASKED)
        with pytest.raises(ConfigError, match="at most 26 options"):
            decide_file(
                client, rows, None, questions={"q": {"type": "choice", "criteria": dict.fromkeys(map(str, range(27)))}}
            )
    assert report.failed == 1
    assert_same(_read(there)[:4], _read(here)[:4], 1e-6)


def test_the_command(folder: Path, rows: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "questions.yaml", tmp_path / "out.jsonl"
    file.write_text(
        "questions:\n  tone:\n    type: choice\n    instructions: The tone?\n    criteria: {calm: polite, angry: }\n"
    )
    command = ["decide", str(folder), str(rows), "--questions", str(file), "-o", str(out), "--label-field", "tone=mood"]
    done = CliRunner().invoke(vcls, command)
    assert done.exit_code == 0, done.output
    assert "accuracy" in done.output
    assert set(_read(out)[0]) == {*ROWS[0], "tone", "tone_confidence", "tone_probabilities"}


def test_names_in_yaml_are_texts(tmp_path: Path) -> None:
    """YAML makes booleans of true and no, and a number of 1; docs/decide.md shows the first."""
    file = tmp_path / "questions.yaml"
    file.write_text(
        "refund: &one {type: noul, criteria: {true: asks for money, false: null}}\n"
        "again: {<<: *one, instructions: A refund}\n"
        "choose: {type: choice, criteria: {yes: a, no: b, 1: c}}\n"
    )
    criteria = {"true": "asks for money", "false": None}
    assert read_questions(file) == {
        "refund": {"type": "noul", "criteria": criteria},
        "again": {"type": "noul", "criteria": criteria, "instructions": "A refund"},
        "choose": {"type": "choice", "criteria": {"yes": "a", "no": "b", "1": "c"}},
    }


@pytest.mark.parametrize(
    ("questions", "options", "message"),
    [
        ("{", {}, "questions"),
        ("[]", {}, "holds no questions"),
        ('{"a": {"type": "what"}}', {}, "the question 'a' needs a type: noul, choice, score; it has 'what'"),
        ('{"a": {"type": "choice"}}', {}, "Question 'a'"),
        ('{"a": {"type": "noul"}}', {"label_field": "a"}, "NAME=COLUMN"),
        ('{"ab": {"type": "noul"}}', {"label_field": "aa=x"}, "no question 'aa'. Did you mean 'ab'"),
        ('{"error": {"type": "noul"}}', {}, "has a column 'error', which is the reason of a row that failed, too"),
        (
            '{"a": {"type": "score", "criteria": ["x", "y"]}, "a_confidence": {"type": "noul"}}',
            {},
            "'a_confidence' has a column 'a_confidence', which is a column of the question 'a', too",
        ),
    ],
)  # fmt: skip
def test_wrong_questions(llm: LLM, rows: Path, tmp_path: Path, questions: str, options: Any, message: str) -> None:
    file = tmp_path / "questions.json"
    file.write_text(questions)
    with pytest.raises(ConfigError, match=message):
        decide_file(llm, rows, tmp_path / "out.jsonl", questions=file, **options)
