"""Rows of any types, nulls, nesting and unicode through reader, job and writer of every pair of formats: in order, and equal."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.jobs.fake import FakeLLM
from tests.jobs.files import write
from vllm_cls.jobs.classify import classify_file
from vllm_cls.jobs.resume import parts

RESULTS = {"label", "score", "probs", "truncated", "error"}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    [
        "",
        "007",
        "null",
        "NaN",
        '"',
        "a,b",
        "a;b",
        "\t",
        "\n",
        "\r",
        "\r\n",
        "\u2028",
        "\ufeff",
        "e\u0301",
        "\U0001f600",
        "\0",
    ]
)
NAMES = st.sampled_from(["id", "a b", "\u00e9", "x.y", "label", "score", "0"])
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=9)

SCALARS = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.float32(): st.floats(allow_nan=False, width=32),
    pa.bool_(): st.booleans(),
    pa.string(): TEXT,
    pa.binary(): st.binary(max_size=4),
    pa.date32(): st.dates(),
    pa.timestamp("us"): st.datetimes(),
    pa.timestamp("ns"): st.integers(0, 2**62),
    pa.decimal128(9, 2): st.decimals(-9999999, 9999999, places=2),
}
JSON_TYPES = (pa.int64(), pa.uint64(), pa.float64(), pa.bool_(), pa.string())
TYPES = st.recursive(
    st.sampled_from(list(SCALARS)),
    lambda inner: (
        inner.map(pa.list_)
        | st.dictionaries(st.sampled_from("xyz"), inner, min_size=1, max_size=2).map(
            lambda of: pa.struct(list(of.items()))
        )
    ),
    max_leaves=3,
)


def values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Values of an Arrow type, null among them."""
    if pa.types.is_list(kind):
        return st.none() | st.lists(values_of(kind.value_type), max_size=2)
    if pa.types.is_struct(kind):
        return st.none() | st.fixed_dictionaries({field.name: values_of(field.type) for field in kind})
    return st.none() | SCALARS[kind]


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    types = draw(st.dictionaries(NAMES, TYPES, min_size=1, max_size=3))
    length = draw(st.integers(0, 6))
    columns = {
        name: pa.array(draw(st.lists(values_of(kind), min_size=length, max_size=length)), kind)
        for name, kind in types.items()
    }
    return pa.table(columns)


def quick(examples: int) -> Any:
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("round_trips")


def job(source: Path, target: Path, **options: Any) -> Path:
    """A job in several parts; the template makes do without a text."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parts, "PART_ROWS", 4)
        classify_file(FakeLLM(template="{id}"), source, target, overwrite=True, **options)
    return target


def kept(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of an input's row under the names that they have in the output."""
    return {f"input_{name}" if name in RESULTS else name: value for name, value in row.items()}


def without_results(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in RESULTS} for row in rows]


def json_rows(path: Path) -> list[dict[str, Any]]:
    packed = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with pa.input_stream(str(path), compression=packed) as stream:
        text = stream.read().decode()
    if ".json" in path.suffixes:
        rows: list[dict[str, Any]] = json.loads(text)
        return rows
    return [json.loads(line) for line in text.split("\n")[:-1]]


@quick(20)
@given(ROWS, st.sampled_from(["jsonl", "json", "jsonl.gz", "json.zst"]), st.sampled_from(["jsonl.zst", "json.gz"]))
def test_json(folder: Path, rows: list[dict[str, Any]], suffix: str, out: str) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "".join(line + "\n" for line in lines) if "jsonl" in suffix else f"[{','.join(lines)}]"
    found = json_rows(job(write(folder / f"in.{suffix}", text), folder / f"out.{out}"))
    assert without_results(found) == [kept(row) for row in rows]


@quick(20)
@given(
    st.lists(st.sampled_from(["id", "a b", "\u00e9", "label"]), min_size=2, max_size=3, unique=True),
    st.lists(st.lists(TEXT, min_size=3, max_size=3), max_size=6),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["utf-8", "utf-16"]),
    st.sampled_from(["csv", "tsv.gz", "jsonl", "parquet"]),
)
def test_csv(folder: Path, names: list[str], cells: list[list[str]], delimiter: str, encoding: str, out: str) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([names, *(row[: len(names)] for row in cells)])
    source = write(folder / "in.csv", text.getvalue().encode(encoding))
    target = job(source, folder / f"out.{out}", encoding=encoding, delimiter=delimiter)
    if "sv" in out:
        with pa.input_stream(str(target), compression="gzip" if "gz" in out else None) as stream:
            data = io.StringIO(stream.read().decode(), newline="")
        found: list[dict[str, Any]] = list(csv.DictReader(data, delimiter="\t" if "tsv" in out else ","))
    else:
        found = pq.read_table(target).to_pylist() if out == "parquet" else json_rows(target)
    assert without_results(found) == [kept(dict(zip(names, row, strict=False))) for row in cells]


@quick(30)
@given(tables(), st.sampled_from(["parquet", "arrow"]), st.sampled_from(["parquet", "arrow"]))
def test_columnar(folder: Path, table: pa.Table, suffix: str, out: str) -> None:
    source = folder / f"in.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, source)
    else:
        with pa.ipc.new_stream(source, table.schema) as writer:
            writer.write_table(table)
    target = job(source, folder / f"out.{out}")
    found = pq.read_table(target) if out == "parquet" else pa.ipc.open_file(target).read_all()
    wanted = table.rename_columns(list(kept(dict.fromkeys(table.column_names))))
    assert found.select(wanted.column_names).equals(wanted)


@quick(30)
@given(tables())
def test_columnar_to_json(folder: Path, table: pa.Table) -> None:
    plain = [name for name in table.column_names if table.schema.field(name).type in JSON_TYPES]
    pq.write_table(table, folder / "in.parquet")
    found = json_rows(job(folder / "in.parquet", folder / "out.jsonl"))
    assert [list(row) for row in without_results(found)] == [list(kept(row)) for row in table.to_pylist()]
    for name in plain:
        (renamed,) = kept({name: None})
        assert [row[renamed] for row in found] == table[name].to_pylist()


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_times_that_python_does_not_have_stay_what_they_are(folder: Path, suffix: str) -> None:
    far, ms = 253_402_300_800_000, pa.timestamp("ms", "UTC")  # milliseconds until the year 10000
    columns = {
        "day": pa.array([4_000_000, -1_000_000, 0, None], pa.date32()),
        "time": pa.array([far, -far, 0, None], ms),
        "long": pa.array([10**15, 0, -(10**15), None], pa.duration("ms")),
        "list": pa.array([[far, None], [0], [], None], pa.list_(ms)),
        "pair": pa.array([[far, 0], [0, 0], None, [-far, far]], pa.list_(ms, 2)),
        "struct": pa.array([{"t": far}, {"t": 0}, {"t": None}, None], pa.struct([("t", ms)])),
        "map": pa.array([[("k", far)], [("k", 0)], [], None], pa.map_(pa.string(), ms)),
    }
    pq.write_table(pa.table(columns), folder / "far.parquet")
    out = job(folder / "far.parquet", folder / f"far_out.{suffix}")
    found = pq.read_table(out) if suffix == "parquet" else pa.ipc.open_file(out).read_all()
    for name, column in columns.items():
        assert found[name].combine_chunks().equals(column), name
    assert found["error"].null_count == len(found)
