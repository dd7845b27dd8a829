"""A bad row keeps its place, with its error, in every format; jobs that nobody reads or has room for."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vllm_cls.errors import JobError
from vllm_cls.jobs import rows
from vllm_cls.jobs.classify import classify_file
from vllm_cls.jobs.formats import csv_reader, json_reader, readers, streams

from .fake import FakeLLM
from .files import write

LIMIT = 100_000
LONG = "x" * 2 * LIMIT


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred megabytes are much for a test."""
    for module in (streams, readers, csv_reader, json_reader):
        monkeypatch.setattr(module, "LINE_LIMIT", LIMIT)
    monkeypatch.setattr(rows, "TEXT_LIMIT", LIMIT)


def lines(*rows: bytes) -> bytes:
    return b"\n".join(rows) + b"\n"


def arrow(texts: list[Any], ids: list[int]) -> pa.Table:
    """A table whose texts are bytes, checked by nobody, or null."""
    column = pa.array(texts, pa.binary())
    return pa.table({"id": ids, "text": pa.Array.from_buffers(pa.string(), len(column), column.buffers())})


def to_parquet(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


def to_arrow(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


TEXTS = [b"good", None, b"caf\xff", LONG.encode(), b"good"]
IN_TABLES = [
    "the field 'text' is null",
    "invalid UTF-8 in the field 'text'",
    "the field 'text' is longer than 0 Mi characters",
]
JSON = [
    b'{"id": 0, "text": "good"}',
    b'{"id": 1}',
    b'{"id": 2, "text": null}',
    b'{"id": 3, "text": 7}',
    b'{"id": 4, "text": "caf\xff"}',
    b'{"id": 5, "text": "%s"}' % LONG.encode(),
    b'{"id": 6, "text": "good"}',
]
OF_JSON = [
    "no field 'text'; there is 'id'.",
    "the field 'text' is null",
    "the field 'text' is not a text but a number",
    "invalid UTF-8",
    "is longer than 0 MiB",
]
CASES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "jsonl": (
        lambda path: write(path, lines(*JSON[:-1], b'{"text": "a" 1}', JSON[-1])),
        [*OF_JSON[:3], "invalid UTF-8 at byte 23 of the line", "the line is longer than 0 MiB", "not JSON: Expecting"],
    ),
    "json": (lambda path: write(path, b"[" + b",\n".join(JSON) + b"]"), OF_JSON),
    "csv": (
        lambda path: write(
            path, lines(b"id,text", b"0,good", b"1", b"2,", b"3,caf\xff", b"4," + LONG.encode(), b"5,good")
        ),
        ["the row has 1 cells", "the field 'text' is empty", "invalid UTF-8", "the line is longer than 0 MiB"],
    ),
    "txt": (
        lambda path: write(path, lines(b"good", b"", b"caf\xff", LONG.encode(), b"good")),
        ["the field 'text' is empty", "invalid UTF-8 at byte 4 of the line", "the line is longer than 0 MiB"],
    ),
    "parquet": (lambda path: to_parquet(path, arrow(TEXTS, list(range(5)))), IN_TABLES),
    "arrow": (lambda path: to_arrow(path, arrow(TEXTS, list(range(5)))), IN_TABLES),
}


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        table: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return table
    if path.suffix == ".csv":
        before = csv.field_size_limit(2 * LIMIT + 1)
        found = list(csv.DictReader(io.StringIO(path.read_text())))
        csv.field_size_limit(before)
        return found
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("suffix", CASES)
@pytest.mark.parametrize("out", ["jsonl", "parquet", "csv"])
def test_a_bad_row_keeps_its_place(tmp_path: Path, suffix: str, out: str) -> None:
    make, errors = CASES[suffix]
    make(tmp_path / f"in.{suffix}")
    target = tmp_path / f"out.{out}"
    report = classify_file(FakeLLM(), tmp_path / f"in.{suffix}", target)
    found = rows_of(target)
    told = [row.get("error") or None for row in found]
    assert len(found) == len(errors) + 2 and told[0] is told[-1] is None
    for error, start in zip(told[1:-1], errors, strict=True):
        assert start in error
    assert found[0]["label"] == found[-1]["label"] == "positive"
    assert (report.rows, report.failed) == (len(errors) + 2, len(errors))
    assert sum(report.causes.values()) == report.failed and len(report.causes) == len(errors)
    with pytest.raises(JobError, match=r"more than 0 rows failed: .*in\..*(line|row) [23]: "):
        classify_file(FakeLLM(), tmp_path / f"in.{suffix}", tmp_path / "other.jsonl", on_error="fail")


def test_a_column_that_is_no_text(tmp_path: Path) -> None:
    nested = arrow([b"caf\xff", b"a"], [1, 2])["text"].combine_chunks()
    lists = pa.ListArray.from_arrays([0, 1, 2], nested)
    to_parquet(tmp_path / "in.parquet", pa.table({"text": pa.array([7, 8]), "tags": lists}))
    report = classify_file(FakeLLM(), tmp_path / "in.parquet", tmp_path / "out.jsonl")
    errors = [(row["tags"], row.get("error")) for row in rows_of(tmp_path / "out.jsonl")]
    assert errors == [
        (None, "invalid UTF-8 in the field 'tags'"),
        (["a"], "the field 'text' is not a text but a number"),
    ]
    assert report.failed == 2


JOB = """
import sys
from tests.jobs.fake import FakeLLM
from vllm_cls.jobs import classify
from vllm_cls.jobs.resume import parts
parts.PART_ROWS = 8

class OpenLLM(FakeLLM):
    pass

import vllm_cls.llm
vllm_cls.llm.LLM = OpenLLM
from vllm_cls.cli.main import main
sys.exit(main())
"""


def run(*arguments: str | Path, limit: int | None = None, **options: Any) -> subprocess.Popen[bytes]:
    """`vcls classify` with the model of the tests, in a process of its own, whose files have a limit of bytes."""

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-c", JOB, "classify", "fake", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=full if limit else None, **options
    )


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", "".join(json.dumps({"id": i, "text": f"good {i}"}) + "\n" for i in range(64)))
    out = tmp_path / "out.jsonl"
    classify_file(FakeLLM(), source, tmp_path / "clean.jsonl")
    with run(source, "-o", out, limit=(tmp_path / "clean.jsonl").stat().st_size * 2 // 3) as job:
        said = job.communicate()[1].decode().splitlines()
    assert job.returncode == 1
    assert len(said) == 1 and said[0].startswith(f"error: {out} cannot be written: File too large. ")
    assert said[0].endswith(f"finished rows are kept in {out}.parts: the same command goes on from there.")
    with run(source, "-o", out) as job:
        said = job.communicate()[1].decode().splitlines()
    assert (job.returncode, len(said)) == (0, 1) and "rows that an earlier run has finished" in said[0]
    assert out.read_bytes() == (tmp_path / "clean.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("redirected", "told"),
    [
        ("exec {} >/dev/full", "standard output cannot be written: No space left on device."),
        ("exec {} >&-", "standard output is closed; where nobody reads it, send it to /dev/null."),
        ("exec {} -o {} >/dev/full", "No space left on device: standard output"),
    ],
)
def test_a_standard_output_that_takes_nothing(tmp_path: Path, redirected: str, told: str) -> None:
    job = [sys.executable, "-c", JOB, "classify", "fake", str(write(tmp_path / "in.jsonl", '{"text": "good"}\n'))]
    command = redirected.format(shlex.join(job), shlex.quote(str(tmp_path / "out.jsonl")))
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, env=buffered)
    assert (done.returncode, done.stderr) == (1, f"error: {told}\n")
    assert (tmp_path / "out.jsonl").exists() == ("-o" in redirected)
