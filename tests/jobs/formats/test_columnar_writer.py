from __future__ import annotations

import datetime
import decimal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.files import fields_of
from vllm_cls.jobs.formats import columnar_writer, tables
from vllm_cls.jobs.formats.columnar_writer import arrow_type, fitted, infer
from vllm_cls.jobs.formats.files import find_sources, find_target
from vllm_cls.jobs.formats.readers import read_rows
from vllm_cls.jobs.formats.tables import OutputSchema
from vllm_cls.jobs.pipeline.output import open_output
from vllm_cls.result_fields import RESULT_FIELDS

RESULTS = {
    "label": "a",
    "score": 0.5,
    "probs": [0.5, 0.5],
    "labels": ["a"],
    "value": 1.0,
    "logits": [1.0, 2.0],
    "top_k": [{"label": "a", "score": 0.5}],
    "scores": {"a": 0.5, "b": 0.5},
}
TYPES = {each.name: each.type for each in RESULT_FIELDS if each.name in RESULTS} | {"value": float}
OF_PARQUET = {
    "label": pa.string(),
    "score": pa.float64(),
    "probs": pa.list_(pa.float64()),
    "labels": pa.list_(pa.string()),
    "logits": pa.list_(pa.float64()),
    "top_k": pa.list_(pa.struct([("label", pa.string()), ("score", pa.float64())])),
    "scores": pa.map_(pa.string(), pa.float64()),
    "spans": pa.list_(
        pa.struct(
            [
                ("label", pa.string()),
                ("score", pa.float64()),
                ("start", pa.int64()),
                ("end", pa.int64()),
                ("word", pa.string()),
            ]
        )
    ),
    "steps": pa.list_(
        pa.struct([("score", pa.float64()), ("probs", pa.list_(pa.float64())), ("logits", pa.list_(pa.float64()))])
    ),
    "truncated": pa.bool_(),
    "error": pa.string(),
}


def write(path: Path, records: Sequence[Mapping[str, Any]], layout: OutputSchema | None = None) -> list[str | None]:
    with open_output(find_target(path, []), layout or OutputSchema(None, {})) as writer:
        return [writer.write(record) for record in records]


def test_result_columns_have_their_types_even_without_a_row(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [], OutputSchema({"id": "id"}, TYPES))
    write(tmp_path / "b.parquet", [RESULTS, dict.fromkeys(RESULTS) | {"error": "x"}], OutputSchema(None, TYPES))
    empty, full = (pq.read_table(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    assert empty.schema.remove(0) == full.schema
    assert full.to_pylist() == [
        {**RESULTS, "scores": [("a", 0.5), ("b", 0.5)], "truncated": False, "error": None},
        {**dict.fromkeys(RESULTS), "truncated": False, "error": "x"},
    ]


def test_the_types_of_results_in_parquet() -> None:
    known = {each.name: arrow_type(each.type) for each in RESULT_FIELDS if each.rows and each.name != "value"}
    assert known == OF_PARQUET
    assert (arrow_type(float), arrow_type(list[float])) == (pa.float64(), pa.list_(pa.float64()))  # of "value"


def test_values_of_a_regression_with_several_numbers(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [{"value": [1.0, 2.0]}], OutputSchema(None, {"value": list[float]}))
    assert pq.read_table(tmp_path / "a.parquet")["value"].to_pylist() == [[1.0, 2.0]]


TABLE = pa.table(
    {
        "id": pa.array([1, None, 3], pa.int16()),
        "ns": pa.array([1, None, 1_700_000_000_123_456_789], pa.timestamp("ns", "UTC")),
        "day": pa.array([datetime.date(2024, 2, 29), None, None]),
        "berlin": pa.array([1, None, 1_700_000_000_123_456_789], pa.timestamp("ns", "Europe/Berlin")),
        "micro": pa.array([1, None, 2], pa.timestamp("us", "UTC")),
        "took": pa.array([1, None, 2], pa.duration("ns")),
        "clock": pa.array([1, None, 2], pa.time64("ns")),
        "price": pa.array([decimal.Decimal("1.10"), None, None], pa.decimal128(9, 2)),
        "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
        "raw": pa.array([b"\xff", None, b""], pa.binary()),
        "small": pa.array([0.1, None, 1], pa.float32()),
        "tags": pa.array([["x"], None, []], pa.list_(pa.large_string())),
        "inner": pa.array([{"a": 1, "b": None}, None, {"a": None, "b": [True]}]),
        "pairs": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32())),
    }
)


def test_types_and_values_of_a_parquet_input_are_kept(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "in.parquet")
    sources = find_sources(tmp_path / "in.parquet")
    names = {name: "input_id" if name == "id" else name for name in TABLE.column_names}
    records = [
        {names[name]: value for name, value in row.fields.items()} | {"score": 1.0} for row in read_rows(sources)
    ]
    said = write(tmp_path / "out.parquet", records, OutputSchema(names, {"score": float}, sources))
    assert said == [None] * 3
    found = pq.read_table(tmp_path / "out.parquet").select(list(names.values()))
    expected = pq.read_table(tmp_path / "in.parquet").rename_columns(list(names.values()))
    assert found.schema.types == expected.schema.types
    assert found.equals(expected)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
NESTED = st.recursive(
    PLAIN,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.sampled_from("xyz"), each, max_size=3),
    max_leaves=6,
)


@given(st.lists(NESTED, max_size=5))
def test_what_a_type_was_inferred_from_fits_it(values: list[Any]) -> None:
    kind = infer(values)
    array = pa.array([fitted(value, kind) for value in values], kind)
    assert [value is None for value in array.to_pylist()] == [value is None for value in values]


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)) | st.lists(st.none() | st.floats(allow_nan=False)))
def test_numbers_keep_their_value(values: list[Any]) -> None:
    kind = infer(values)
    assert pa.array([fitted(value, kind) for value in values], kind).to_pylist() == values


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([2**53 + 1, 2.5], pa.string()),
        ([2**70], pa.string()),
        ([True, 1], pa.string()),
        ([None], pa.string()),
        ([["a"], []], pa.list_(pa.string())),
        ([{"a": 1}, {"b": "x"}], pa.struct([("a", pa.int64()), ("b", pa.string())])),
        ([{}], pa.string()),
        ([datetime.date(2024, 1, 1)], pa.date32()),
    ],
)
def test_types_of_json_values(values: list[Any], kind: pa.DataType) -> None:
    assert infer(values) == kind


def test_json_rows_with_nested_values_come_back(tmp_path: Path) -> None:
    records = [
        {"id": 1, "messages": [{"role": "user", "content": "a"}], "any": 5},
        {"id": 2, "messages": [{"role": "user", "content": "b", "name": "x"}], "any": ["x"]},
    ]
    write(tmp_path / "a.parquet", records)
    found = fields_of(tmp_path / "a.parquet")
    assert found[0]["messages"] == [{"role": "user", "content": "a", "name": None}]
    assert found[1]["messages"] == records[1]["messages"]
    assert [row["any"] for row in found] == ["5", '["x"]']


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (1, "one"),
        (1, 1.5),
        (1, True),
        (1, 2**70),
        (1.5, 2**60 + 1),
        (True, 1),
        ([1], 1),
        ([1], ["x"]),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1}, [1]),
    ],
)
def test_a_value_that_does_not_fit_later_is_said_and_null(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Any, later: Any
) -> None:
    monkeypatch.setattr(tables, "FIRST_ROWS", 1)
    monkeypatch.setattr(columnar_writer, "GROUP_ROWS", 2)
    said = write(tmp_path / "a.parquet", [{"x": value, "i": 1} for value in (first, later, first)])
    found = fields_of(tmp_path / "a.parquet")
    assert [row["x"] for row in found] == [first, None, first]
    assert [row["i"] for row in found] == [1, 1, 1]
    assert said[0] is said[2] is None
    assert str(said[1]).startswith("the field 'x' is lost: ")
    assert [row["error"] for row in found] == said


@pytest.mark.parametrize(("later", "text"), [(5, "5"), ({"a": 1}, '{"a": 1}'), ("half \ud800", "half ?")])
def test_a_column_of_texts_takes_anything_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: Any, text: str
) -> None:
    monkeypatch.setattr(tables, "FIRST_ROWS", 1)
    assert write(tmp_path / "a.parquet", [{"x": None}, {"x": later}]) == [None, None]
    assert [row["x"] for row in fields_of(tmp_path / "a.parquet")] == [None, text]
