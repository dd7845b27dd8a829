from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.jobs.files import write
from vllm_cls.errors import ConfigError, JobError
from vllm_cls.jobs.formats.files import InputFile, find_sources, find_target, split_name


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.jsonl", ("jsonl", None)),
        ("dir.csv/A.CSV.GZ", ("csv", "gzip")),
        ("a.b.tsv.zst", ("tsv", "zstd")),
        ("a.gz", (None, "gzip")),
        ("plain", (None, None)),
    ],
)
def test_a_name_tells_format_and_compression(name: str, parts: tuple[str | None, str | None]) -> None:
    assert split_name(name) == parts


def test_inputs_keep_their_order_and_globs_are_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "z.csv"):
        write(tmp_path / name, "x")
    found = find_sources([tmp_path / "z.csv", str(tmp_path / "*.jsonl")])
    assert [os.path.basename(source.path) for source in found] == ["z.csv", "a.jsonl", "b.jsonl"]
    assert [source.format for source in found] == ["csv", "jsonl", "jsonl"]
    assert found[0].size == 1


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    write(tmp_path / "a[1].jsonl", "x")
    write(tmp_path / "a1.jsonl", "x")
    (found,) = find_sources(tmp_path / "a[1].jsonl")
    assert found.path.endswith("a[1].jsonl")


def test_the_format_given_wins_over_the_name(tmp_path: Path) -> None:
    (found,) = find_sources(write(tmp_path / "rows.txt.gz", "{}"), "ndjson")
    assert (found.format, found.compression) == ("jsonl", "gzip")


def test_standard_input_is_json_lines_unless_told() -> None:
    assert find_sources("-") == [InputFile("-", "jsonl")]
    assert find_sources("-", "csv") == [InputFile("-", "csv")]


@pytest.mark.parametrize(
    ("inputs", "format", "says"),
    [
        ([], None, "no input"),
        (["-", "-"], None, "twice"),
        ("-", "parquet", "standard input"),
        ("a.jsnl", None, "Did you mean 'jsonl'"),
        ("a", None, "does not tell a format"),
        ("a", "cvs", "Did you mean 'csv'"),
        ("a.parquet.gz", None, "compresses its own pages"),
    ],
)
def test_wrong_inputs_are_options_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: str | list[str], format: str | None, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "a.jsnl", "a.parquet.gz"):
        write(tmp_path / name, "x")
    with pytest.raises(ConfigError, match=says):
        find_sources(inputs, format)


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no file matches .*\*\.jsonl"):
        find_sources(str(tmp_path / "*.jsonl"))
    with pytest.raises(JobError, match="there is no file"):
        find_sources(tmp_path / "a.jsonl")
    with pytest.raises(JobError, match="is a folder; name its files"):
        find_sources(tmp_path)


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", "x")
    (tmp_path / "link.jsonl").symlink_to(source)
    sources = find_sources(source)
    cases = {
        tmp_path: "is a folder",
        tmp_path / "no" / "out.jsonl": "does not exist",
        source: "is also an input",
        tmp_path / "link.jsonl": "is also an input",
    }
    for output, says in cases.items():
        with pytest.raises(JobError, match=says):
            find_target(output, sources)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(JobError, match="not an ordinary file"):
        find_target(tmp_path / "pipe.jsonl", sources)
    with pytest.raises(ConfigError, match="'out' does not tell a format"):
        find_target(tmp_path / "out", sources)


def test_the_output_takes_the_given_format_only_where_its_name_does_not_tell(tmp_path: Path) -> None:
    assert find_target(tmp_path / "out", [], "csv").format == "csv"
    assert find_target(tmp_path / "out.tsv.zst", [], "csv").format == "tsv"
    assert find_target(tmp_path / "out.tsv.zst", []).compression == "zstd"
    assert find_target(None, []).path is find_target("-", []).path is None
