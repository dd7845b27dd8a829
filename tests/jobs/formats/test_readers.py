from __future__ import annotations

import io
import json
import math
import os
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.files import fields_of, jsonl, rows_of, write
from vllm_cls.errors import JobError
from vllm_cls.jobs.formats import json_reader
from vllm_cls.jobs.formats.files import find_sources
from vllm_cls.jobs.formats.json_reader import read_json
from vllm_cls.jobs.formats.readers import columns_of, read_jsonl, read_rows
from vllm_cls.jobs.formats.streams import Stream

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=5)


@given(OBJECTS, st.sampled_from(["\n", "\r\n", "\n\n", "\n \r\n"]), st.booleans())
def test_json_lines_round_trip(objects: list[dict[str, Any]], end: str, ascii: bool) -> None:
    data = "".join(json.dumps(each, ensure_ascii=ascii) + end for each in objects).encode()
    rows = list(read_jsonl(Stream(io.BytesIO(data))))
    assert [(row.fields, row.error) for row in rows] == [(each, None) for each in objects]


class Dripping(io.BytesIO):
    """A file that gives a few bytes at a time, so that every value is cut somewhere."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(3)


@given(OBJECTS, st.sampled_from([None, 2]), st.booleans(), st.booleans())
def test_json_arrays_round_trip(objects: list[dict[str, Any]], indent: int | None, ascii: bool, mark: bool) -> None:
    data = b"\xef\xbb\xbf" * mark + json.dumps(objects, indent=indent, ensure_ascii=ascii).encode()
    for file in (io.BytesIO(data), Dripping(data)):
        rows = list(read_json(Stream(file)))
        assert [(row.fields, row.error) for row in rows] == [(each, None) for each in objects]


def test_json_may_be_objects_one_after_the_other() -> None:
    rows = list(read_json(Stream(io.BytesIO(b'{"a": 1}\n{\n "a": 2}\n'))))
    assert [row.fields for row in rows] == [{"a": 1}, {"a": 2}]


def test_a_bad_value_of_an_array_costs_itself_alone() -> None:
    rows = list(read_json(Stream(Dripping(b'[{"a": 1}, 1234567, {"a": "x\xff"}, {"a": 3}]'))))
    assert [row.error for row in rows] == [None, "the value is a number, not an object", "invalid UTF-8", None]
    assert [row.fields for row in rows] == [{"a": 1}, {}, {"a": "x\ufffd"}, {"a": 3}]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ('[{"a": 1}, {"a": 2', "row 2 is not JSON"),
        ('[{"a": 1} {"a": 2}]', "in place of a comma"),
        ('[{"a": 1}', "its end is missing"),
        ('[{"a": 1}] []', "something follows its end"),
        ('{"a": 1}]', "its beginning is missing"),
        ("[nonsense]", "row 1 is not JSON"),
        ("[" * 100_000, "row 1 is not JSON"),
    ],
)
def test_a_damaged_array_ends_the_job(tmp_path: Path, data: str, says: str) -> None:
    with pytest.raises(JobError, match=rf"a\.json: .*{says}"):
        rows_of(write(tmp_path / "a.json", data))


def test_a_value_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reader, "LINE_LIMIT", 100_000)
    for before in (b'[{"a": "', b'{"a": "'):
        file = io.BytesIO(before + b"x" * 10_000_000)
        tracemalloc.start()
        with pytest.raises(JobError, match="row 1 is too long or not JSON"):
            list(read_json(Stream(file)))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


@pytest.mark.parametrize("long", ['{"a": "%s", "b": ["]", {"\\\\": "\\"}"}]}', '"%s"', '["%s", "\\\\"]'])
def test_a_value_that_is_too_long_costs_itself_alone(monkeypatch: pytest.MonkeyPatch, long: str) -> None:
    monkeypatch.setattr(json_reader, "LINE_LIMIT", 1000)
    data = f'[{{"a": 1}}, {long % ("x" * 200_000)}, {{"a": 3}}]'.encode()
    json.loads(data)
    for file in (io.BytesIO(data), Dripping(data)):
        rows = list(read_json(Stream(file)))
        assert [row.fields for row in rows] == [{"a": 1}, {}, {"a": 3}]
        assert [row.error for row in rows] == [None, "the value is longer than 0 MiB", None]


def test_an_array_of_texts() -> None:
    rows = list(read_json(Stream(io.BytesIO(b'["a", "", 3, {"text": "b"}, "caf\xe9"]'))))
    assert [row.fields for row in rows] == [
        {"text": "a"},
        {"text": ""},
        {},
        {"text": "b"},
        {"text": "caf\ufffd"},
    ]
    assert [row.error for row in rows] == [None, None, "the value is a number, not a text", None, "invalid UTF-8"]


@pytest.mark.parametrize(
    "data",
    [
        '{"text": ["a", "b"], "label": [0, 1]}',
        '{"text": {"0": "a", "1": "b"}}',
        '{"version": 1, "data": [{"text": "a"}]}',
        '\n{"rows": [{"row": {"text": "a"}}]}\n',
    ],
)
def test_an_object_that_holds_all_rows_is_refused(tmp_path: Path, data: str) -> None:
    with pytest.raises(JobError, match=r"a\.json: the file is one object with '.*write an array with an object a row"):
        rows_of(write(tmp_path / "a.json", data))


@pytest.mark.parametrize(
    "data",
    [
        '{"text": "a", "tags": ["x"]}',
        '{"id": 1, "messages": [{"role": "user", "content": "a"}]}',
        '{"tags": ["x"]} {"tags": []}',
        '[{"tags": ["x"]}]',
        "{}",
    ],
)
def test_an_object_that_is_a_row_is_read(data: str) -> None:
    rows = list(read_json(Stream(io.BytesIO(data.encode()))))
    assert [row.error for row in rows] == [None] * len(rows) and rows


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "txt", "jsonl.gz", "csv.zst"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-be", "shift_jis"])
def test_other_encodings(tmp_path: Path, suffix: str, encoding: str) -> None:
    texts = ["caf\xe9 \u20ac"] * 3 if encoding == "cp1252" else ["\u30ab\u30e6 x"] * 3
    bodies = {
        "jsonl": "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in texts),
        "json": json.dumps([{"text": text} for text in texts], ensure_ascii=False),
        **dict.fromkeys(["csv", "tsv"], "\r\n".join(["text", *texts])),
        "txt": "\n".join(texts),
    }
    path = write(tmp_path / f"a.{suffix}", bodies[suffix.split(".")[0]].encode(encoding))
    sources = find_sources(path, encoding=encoding)
    rows = list(read_rows(sources))
    assert [(row.fields, row.error) for row in rows] == [({"text": text}, None) for text in texts]
    assert columns_of(sources[0]) == (None if "json" in suffix else ["text"])


def test_what_is_not_in_the_encoding_costs_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"caf\xe9\n\x81\nok\n")
    rows = list(read_rows(find_sources(path, encoding="cp1252")))
    assert [row.error for row in rows] == [None, "invalid cp1252 at byte 1 of the line", None]
    lines = "a\nb\n".encode("utf-16-le") + b"\x00\xd8" + "\nc\n".encode("utf-16-le")  # half a surrogate pair
    rows = list(read_rows(find_sources(write(tmp_path / "b.txt", lines), encoding="utf-16-le")))
    assert [row.error is None for row in rows][:2] == [True, True] and any(row.error for row in rows)


def test_standard_input_in_another_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    ready, given = os.pipe()
    os.write(given, "caf\xe9\n".encode("utf-16"))
    os.close(given)
    with os.fdopen(ready, "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
        (row,) = read_rows(find_sources("-", "txt", encoding="utf-16"))
    assert row.fields == {"text": "caf\xe9"}


def test_what_looks_like_another_encoding_is_said_once(tmp_path: Path) -> None:
    path, notes = write(tmp_path / "a.csv", b"text;x\ncaf\xe9;1\nb\xe9b\xe9;2\n"), list[str]()
    rows = list(read_rows(find_sources(path), notes))
    assert [row.error for row in rows] == ["invalid UTF-8"] * 2
    assert [note.removeprefix(f"{path}: ")[:40] for note in notes] == [
        "its columns are separated by semicolons,",
        "not all of it is UTF-8; if it was saved ",
    ]
    assert "--encoding cp1252" in notes[1]


def test_a_broken_line_costs_itself_alone(tmp_path: Path) -> None:
    lines = [
        b'{"text": "a"}',
        b'{"text": "b"',
        b"",
        b"[1]",
        b'{"text": "\xff", "id": 7}',
        b"[" * 100_000,
        b'{"n": ' + b"1" * 5000 + b"}",
        b'{"text": "z"}',
    ]
    rows = rows_of(write(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert [row.number for row in rows] == [1, 2, 4, 5, 6, 7, 8]
    assert [row.error is None for row in rows] == [True, False, False, False, False, False, True]
    assert rows[1].error == "not JSON: Expecting ',' delimiter at character 13 of the line"
    assert rows[2].error == "the line is a list, not an object"
    assert rows[3].error == "invalid UTF-8 at byte 11 of the line"
    assert rows[3].fields == {"text": "\ufffd", "id": 7}
    assert rows[6].fields == {"text": "z"}
    assert rows[1].place == f"{tmp_path}/a.jsonl, line 2"


def test_text_files_keep_every_line(tmp_path: Path) -> None:
    rows = rows_of(write(tmp_path / "a.txt", "\ufeffone\r\n\n tw\u2028o \x0c\nthree".encode()))
    assert [row.fields for row in rows] == [{"text": text} for text in ("one", "", " tw\u2028o \x0c", "three")]
    assert rows_of(write(tmp_path / "b.txt", b"ok\n\xe9t\xe9\n"))[1].error == "invalid UTF-8 at byte 1 of the line"


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".json.gz", ".txt.zst"])
def test_compressed_inputs(tmp_path: Path, suffix: str) -> None:
    bodies = {"jsonl": '{"text": "ä"}\n' * 3, "json": '[{"text": "ä"}' + ', {"text": "ä"}' * 2 + "]", "txt": "ä\n" * 3}
    path = write(tmp_path / f"a{suffix}", bodies[suffix.split(".")[1]])
    assert fields_of(path) == [{"text": "ä"}] * 3


def test_several_files_are_one_stream_with_the_share_that_is_read(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", '{"text": "1"}\n{"text": "2"}\n')
    second = write(tmp_path / "b.txt", "3\n")
    rows = rows_of(first, second)
    assert [row.fields["text"] for row in rows] == ["1", "2", "3"]
    assert [row.done for row in rows] == [14 / 30, 28 / 30, 1.0]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a"}\nx\n')))
    rows = list(read_rows(find_sources("-")))
    assert [row.fields for row in rows] == [{"text": "a"}, {}]
    assert rows[1].place == "standard input, line 2"
    assert rows[1].done is None


def test_a_file_is_read_as_its_rows_are_asked_for(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "x" * 1000}] * 5000)
    rows = read_rows(find_sources(path))
    assert next(rows).done == pytest.approx(1 / 5000)


def test_columns_are_known_where_the_file_declares_them(tmp_path: Path) -> None:
    files = {"a.csv": "text,label\n", "b.tsv.gz": "x\ty\n", "c.txt": "hello", "d.jsonl": "{}"}
    sources = find_sources([write(tmp_path / name, data) for name, data in files.items()])
    assert [columns_of(source) for source in sources] == [["text", "label"], ["x", "y"], ["text"], None]
    assert columns_of(find_sources("-", "csv")[0]) is None


def test_readers_of_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shout(path: str) -> Iterator[Any]:
        yield from ({"text": word.upper()} for word in Path(path).read_text().split())
        yield "no row"

    class Registry:
        def collect(self, hook: str) -> dict[str, Any]:
            return {"vcls_readers": {"loud": shout}}[hook]

    monkeypatch.setattr("vllm_cls.registry.registry", Registry)
    rows = rows_of(write(tmp_path / "a.loud", "one two"))
    assert [row.fields for row in rows] == [{"text": "ONE"}, {"text": "TWO"}, {}]
    assert rows[2].error == "the reader of 'loud' gave a text, not an object"


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_lines_that_end_with_carriage_returns_alone(tmp_path: Path, suffix: str) -> None:
    one, many = {"txt": ("a\rb\n", "a\rb\r"), "jsonl": ('{"text":\r"a"}', '{"text": "a"}\r{"text": "b"}')}[suffix]
    (row,) = read_rows(find_sources(write(tmp_path / f"one.{suffix}", one)))
    assert row.error is None
    with pytest.raises(JobError, match=r"many.* its lines end with carriage returns alone"):
        list(read_rows(find_sources(write(tmp_path / f"many.{suffix}", many))))


def test_what_json_lacks_is_kept_as_pandas_reads_it(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '{"a": NaN, "b": -Infinity}\n')
    (row,) = read_rows(find_sources(source))
    assert math.isnan(row.fields["a"]) and row.fields["b"] == -math.inf
