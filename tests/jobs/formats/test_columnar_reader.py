from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from tests.jobs.files import fields_of, jsonl, rows_of, write
from vllm_cls.errors import JobError
from vllm_cls.jobs.formats.columnar_reader import merged_schema
from vllm_cls.jobs.formats.files import find_sources
from vllm_cls.jobs.formats.readers import columns_of, read_rows


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


def test_nanoseconds_of_a_time_zone_are_exact(tmp_path: Path) -> None:
    kind = pa.timestamp("ns", "Europe/Berlin")  # of +0:53:28 once
    numbers = [2**63 - 1, -8_500_000_000_000_000_001, 1]
    table = pa.table({"t": pa.array(numbers, kind), "l": pa.array([[each] for each in numbers], pa.list_(kind))})
    found = fields_of(parquet(tmp_path / "a.parquet", table))
    assert [pa.scalar(row["t"]).cast(kind).value for row in found] == numbers
    assert [row["l"] for row in found] == [[row["t"]] for row in found]
    assert found[0]["t"] == "2262-04-11 23:47:16.854775807Z"


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


def test_nanoseconds_within_lists_and_structs(tmp_path: Path) -> None:
    kind = pa.struct([("t", pa.list_(pa.timestamp("ns", "UTC"))), ("n", pa.int64())])
    table = pa.table(
        {"x": pa.array([{"t": [1, None], "n": 1}, None], kind), "d": pa.array([5, None], pa.duration("ns"))}
    )
    assert fields_of(parquet(tmp_path / "a.parquet", table)) == [
        {"x": {"t": ["1970-01-01 00:00:00.000000001Z", None], "n": 1}, "d": "5"},
        {"x": None, "d": None},
    ]
    whole = pa.table({"t": pa.array([1000], pa.timestamp("ns"))})  # which Python's own type holds
    (row,) = fields_of(parquet(tmp_path / "b.parquet", whole))
    assert type(row["t"]) is datetime.datetime and row["t"].microsecond == 1


def test_times_that_python_does_not_have_are_kept_as_text(tmp_path: Path) -> None:
    far = 253_402_300_800_000  # milliseconds until the year 10000
    table = pa.table(
        {
            "t": pa.array([far, 0, None], pa.timestamp("ms")),
            "z": pa.array([far - 1000, 0, None], pa.timestamp("ms", "+09:00")),
            "d": pa.array([far // 86_400_000, 0, None], pa.date32()),
            "x": pa.array([[0], [far], None], pa.list_(pa.timestamp("ms"))),
        }
    )
    first, second, third = rows_of(parquet(tmp_path / "a.parquet", table))
    assert first.fields["t"] == "10000-01-01 00:00:00.000"
    assert first.fields["z"] == "10000-01-01 08:59:59.000+0900"
    assert first.fields["d"] == "10000-01-01"
    assert second.fields["t"] == datetime.datetime(1970, 1, 1) and second.fields["d"] == datetime.date(1970, 1, 1)
    assert set(third.fields.values()) == {None}
    assert second.fields["x"] == ["10000-01-01 00:00:00.000"]
    assert first.error is second.error is third.error is None


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_both_formats_of_arrow(tmp_path: Path, new: Any, compression: str | None) -> None:
    table = pa.table({"text": [f"t{i}" for i in range(5000)], "tags": [[str(i)] * (i % 3) for i in range(5000)]})
    path = tmp_path / "a.arrow"
    with new(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=2000)
    rows = rows_of(path)
    assert [row.fields for row in rows] == table.to_pylist()
    assert [row.number for row in rows] == list(range(1, 5001))
    shares = [row.done for row in rows]
    assert shares == sorted(shares, key=lambda share: share or 0) and 0.1 < (shares[1999] or 0) < 0.6 and shares[-1]
    assert columns_of(find_sources(path)[0]) == ["text", "tags"]


def test_feather_is_arrow_and_version_1_is_told(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", None]})
    feather.write_feather(table, tmp_path / "a.feather")
    assert fields_of(tmp_path / "a.feather") == table.to_pylist()
    write(tmp_path / "b.feather", b"FEA1" + bytes(100))
    for name in ("b.feather", "c.arrow", "d.arrow"):
        write(tmp_path / "c.arrow", "nonsense")
        write(tmp_path / "d.arrow", "")
        with pytest.raises(JobError, match=rf"{name} cannot be read as Arrow: "):
            rows_of(tmp_path / name)


HIVE = {
    "numbers": ["007", "-0", "12", "__HIVE_DEFAULT_PARTITION__"],
    "texts": ["1", "b", "a%20b", "x=y", "__HIVE_DEFAULT_PARTITION__"],
    "plus": ["+5"],
    "large": ["9999999999"],
    "space": [" 3"],
}


@pytest.mark.parametrize("values", HIVE.values(), ids=HIVE)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_folders_are_columns_as_in_pyarrow(tmp_path: Path, values: list[str], suffix: str) -> None:
    for number, value in enumerate(values):
        folder = tmp_path / "k=a" / "data" / f"key={value}"
        folder.mkdir(parents=True)
        if suffix == "parquet":
            pq.write_table(pa.table({"n": [number]}), folder / "a.parquet")
        else:
            feather.write_feather(pa.table({"n": [number]}), folder / "a.arrow")
    data = tmp_path / "k=a" / "data"
    wanted = ds.dataset(data, format=suffix if suffix == "parquet" else "ipc", partitioning="hive").to_table()
    by_number = sorted(wanted.to_pylist(), key=lambda row: row["n"])
    for given in [data] if suffix == "parquet" else []:
        sources = find_sources(given)
        assert sorted((row.fields for row in read_rows(sources)), key=lambda row: row["n"]) == by_number
        assert columns_of(sources[0]) == ["n", "key"]
        schema = merged_schema(sources)
        assert schema is not None and schema.field("key").type == wanted.schema.field("key").type
    found = [row.fields for row in read_rows(find_sources(f"{data}/key=*/*.{suffix}"))]
    assert sorted(({**row, "k": "a"} for row in by_number), key=str) == sorted(found, key=str)


def test_a_folder_replaces_the_column_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "k=5").mkdir()
    pq.write_table(pa.table({"k": [7], "t": ["a"]}), tmp_path / "k=5" / "a.parquet")
    assert [row.fields for row in read_rows(find_sources(tmp_path))] == [{"k": 5, "t": "a"}]
    write(tmp_path / "k=5" / "b.jsonl", '{"t": "a"}')
    assert fields_of(tmp_path / "k=5" / "b.jsonl") == [{"t": "a"}]
