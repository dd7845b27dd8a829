from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.files import fields_of, rows_of, write
from vllm_cls.errors import JobError
from vllm_cls.jobs.formats import csv_reader
from vllm_cls.jobs.formats.csv_reader import read_csv
from vllm_cls.jobs.formats.files import find_sources
from vllm_cls.jobs.formats.readers import columns_of, read_rows
from vllm_cls.jobs.formats.streams import Stream
from vllm_cls.jobs.rows import InputRow


def rows(data: bytes | str, kind: str = "csv") -> list[InputRow]:
    return list(read_csv(Stream(io.BytesIO(data.encode() if isinstance(data, str) else data)), kind))


CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ['"', '""', "a,b", "\n", "\r\n", "\t", "", "007", ' "x" ', "é\u2028"]
)


@given(
    st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=6),
    st.sampled_from(["csv", "tsv"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_round_trip(cells: list[tuple[str, str, str]], kind: str, quoting: int, end: str) -> None:
    if any("\r" in cell for row in cells for cell in row):
        quoting = csv.QUOTE_ALL  # Python's writer leaves a bare carriage return unquoted, which nobody can read
    text = io.StringIO(newline="")
    delimiter = csv_reader.DELIMITERS[kind]
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
    writer.writerows([("a", "b", "c"), *cells])
    found = rows(text.getvalue(), kind)
    assert [(tuple(row.fields.values()), row.error) for row in found] == [(each, None) for each in cells]


def test_cells_are_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbfid,text,x\r\n007,1e5,\r\n\r\n,true,NULL\r\n")
    assert fields_of(path) == [{"id": "007", "text": "1e5", "x": ""}, {"id": "", "text": "true", "x": "NULL"}]


def test_numbers_are_those_of_the_first_line_of_a_record() -> None:
    found = rows('a,b\n1,"x\ny\nz"\n2,w\n')
    assert [(row.number, row.fields["b"]) for row in found] == [(2, "x\ny\nz"), (5, "w")]
    assert [row.offset for row in found] == [14, 18]


def test_ragged_rows_say_so_and_keep_their_cells() -> None:
    found = rows("a,b\n1\n1,2,3\n1,2\n")
    assert [row.error for row in found] == [
        "the row has 1 cells and the header 2",
        "the row has 3 cells and the header 2",
        None,
    ]
    assert [row.fields for row in found] == [{"a": "1"}, {"a": "1", "b": "2"}, {"a": "1", "b": "2"}]


@pytest.mark.parametrize(
    "data",
    [
        'a,b\n1,"open\n2,fine\n3,fine\n',  # to the end of the file
        'a,b\n1,"open\n2,"quoted"\n3,fine\n',  # until another quote makes no sense
        'a,b\n1,"wrong"place\n2,fine\n3,fine\n',
    ],
)
def test_a_quote_that_is_not_closed_costs_its_line_alone(data: str) -> None:
    found = rows(data)
    assert [row.fields["a"] for row in found] == ["1", "2", "3"]
    assert [row.error is None for row in found] == [False, True, True]
    assert "quote" in str(found[0].error)


def test_the_search_for_a_closing_quote_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "RECORD_LIMIT", 100)
    found = rows('a,b\n1,"open\n' + "2,fine\n" * 100 + '3,"closed"\n')
    assert len(found) == 102
    assert [row.error for row in found].count(None) == 101


def test_a_long_document_is_a_cell() -> None:
    text = "word, " * 50_000
    assert rows(f'a\n"{text}"\n')[0].fields == {"a": text}
    assert csv.field_size_limit() == 131072


def test_bytes_that_are_not_utf8_cost_their_row() -> None:
    found = rows(b'a,b\n1,caf\xe9\n2,"caf\xe9\nx"\n3,fine\n')
    assert [row.error for row in found] == ["invalid UTF-8", "invalid UTF-8", None]
    assert found[0].fields == {"a": "1", "b": "caf\ufffd"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("", "the file is empty"),
        ("a,b,a\n1,2,3\n", "the column 'a' twice"),
        ('"a,b\n1,2\n', "the header, line 1, cannot be read"),
        ("a,b\r1,2\r", "carriage returns alone"),
        (b"caf\xe9,b\n", "invalid UTF-8"),
    ],
)
def test_a_header_that_cannot_be_used_ends_the_job(tmp_path: Path, data: str | bytes, says: str) -> None:
    with pytest.raises(JobError, match=rf"a\.csv: .*{says}"):
        rows_of(write(tmp_path / "a.csv", data))


def test_columns_without_a_name_get_one() -> None:
    assert rows("a,,b,\n1,2,3,4\n")[0].fields == {"a": "1", "column_2": "2", "b": "3", "column_4": "4"}


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.csv", "text;label\ngood, really;1\n", "semicolons"),
        ("a.csv", b'\xef\xbb\xbf"text";"label"\r\n"good, really";"1"\r\n', "semicolons"),
        ("a.csv", "\n  \ntext\tlabel\ngood, really\t1\n", "tabs"),
        ("a.csv", "text|label\ngood, really|1\n", "vertical bars"),
        ("a.tsv", 'text,label\n"good, really",1\n', "commas"),
        ("a.csv.gz", "text;label\ngood, really;1\n", "semicolons"),
        ("a.csv", '"text;";label\ngood, really;1\n', "semicolons"),
        ("a.csv", "sep=;\r\ntext;label\r\ngood, really;1\r\n", "semicolons"),
        ("a.csv", '"sep=\t"\ntext\tlabel\ngood, really\t1\n', "tabs"),
        ("a.csv", 'sep=,\ntext,label\n"good, really",1\n', None),
        ("a.csv", 'text,label;\n"good, really",1\n', None),
        ("a.tsv", "text\tlabel,\ngood, really\t1\n", None),
    ],
)
def test_the_mark_between_columns_is_told_by_the_header(
    tmp_path: Path, name: str, data: bytes | str, told: str | None
) -> None:
    path, notes = write(tmp_path / name, data), list[str]()
    (row,) = read_rows(find_sources(path), notes)
    assert (row.error, list(row.fields.values())) == (None, ["good, really", "1"])
    assert [column.rstrip(";,") for column in row.fields] == ["text", "label"]
    assert columns_of(find_sources(path)[0]) == list(row.fields)
    assert notes == ([] if told is None else [f"{path}: its columns are separated by {told}, and are read so"])


@pytest.mark.parametrize(
    ("data", "delimiter"),
    [
        ("text, of x;label,a\ngood, really;1\n", ";"),
        ("text\x1flabel\ngood; really\x1f1\n", "\x1f"),
        ("sep=;\ntext;label\ngood, really;1\n", ";"),
        ('"text";label\n"good;\nreally";1\n', ";"),
    ],
)
def test_the_mark_between_columns_is_given(tmp_path: Path, data: str, delimiter: str) -> None:
    path, notes = write(tmp_path / "a.csv", data), list[str]()
    sources = find_sources(path, delimiter=delimiter)
    (row,) = read_rows(sources, notes)
    assert (row.error, list(row.fields.values())[1], notes) == (None, "1", [])
    assert columns_of(sources[0]) == list(row.fields)


@pytest.mark.parametrize("header", ["text", '"a;b"', '"text, of a review"', '"a\tb|c"', "a;b\tc"])
def test_a_column_alone_is_not_parted(header: str) -> None:
    (row,) = rows(f"{header}\none;two|three\n")
    assert list(row.fields.values()) == ["one;two|three"] and row.error is None
    assert list(row.fields) == [header.strip('"')]


def test_numbers_of_lines_behind_a_line_for_excel() -> None:
    assert [row.number for row in rows("sep=;\na;b\n1;2\n")] == [3]


def test_notes_are_of_the_first_few_files(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.csv", "a;b\n1;2\n") for number in range(9)]
    notes: list[str] = []
    assert len(list(read_rows(find_sources(paths), notes))) == 9
    assert [note.split(":")[0] for note in notes] == list(map(str, paths[:5]))
