from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs.files import fields_of, jsonl, rows_of, write
from vllm_cls.errors import JobError
from vllm_cls.jobs.formats.files import find_sources
from vllm_cls.jobs.formats.parquet_reader import merged_schema


def parquet(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path, row_group_size=1500)
    return path


def test_rows_come_with_their_types(tmp_path: Path) -> None:
    day = datetime.date(2024, 2, 29)
    table = pa.table({"text": ["a", None], "n": [1, 2], "tags": [["x"], []], "day": [day, None], "raw": [b"\xff", b""]})
    assert fields_of(parquet(tmp_path / "a.parquet", table)) == table.to_pylist()


def test_many_rows_in_order_with_the_share_that_is_read(tmp_path: Path) -> None:
    rows = rows_of(parquet(tmp_path / "a.parquet", pa.table({"i": range(4000)})))
    assert [row.fields["i"] for row in rows] == list(range(4000))
    assert [rows[0].number, rows[-1].number] == [1, 4000]
    assert rows[1999].done == pytest.approx(0.5, abs=0.01)
    assert rows[-1].done == 1.0


def test_nanoseconds_are_kept_as_text(tmp_path: Path) -> None:
    table = pa.table({"t": pa.array([1, None], pa.timestamp("ns"))})
    assert fields_of(parquet(tmp_path / "a.parquet", table)) == [{"t": "1970-01-01 00:00:00.000000001"}, {"t": None}]


def test_what_is_not_parquet_ends_the_job(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"a\.parquet cannot be read as Parquet"):
        rows_of(write(tmp_path / "a.parquet", "nonsense"))


def test_schemas_of_several_files_are_merged(tmp_path: Path) -> None:
    small = parquet(tmp_path / "a.parquet", pa.table({"n": pa.array([1], pa.int32())}))
    large = parquet(tmp_path / "b.parquet", pa.table({"n": pa.array([1], pa.int64()), "x": ["a"]}))
    text = parquet(tmp_path / "c.parquet", pa.table({"n": ["1"]}))
    assert merged_schema(find_sources([small, large])) == pa.schema([("n", pa.int64()), ("x", pa.string())])
    with pytest.raises(JobError, match="do not go together"):
        merged_schema(find_sources([small, text]))
    assert merged_schema(find_sources(jsonl(tmp_path / "d.jsonl", [{}]))) is None
