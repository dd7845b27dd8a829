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
        ("-", "feather", "Arrow cannot be read from standard input"),
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


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("a.csv", {"delimiter": ";;"}, "must be one character"),
        ("a.csv", {"delimiter": '"'}, "must be one character"),
        ("a.jsonl", {"delimiter": ";"}, "is for CSV and TSV"),
        ("a.csv", {"encoding": "utf-99"}, "none that Python knows"),
        ("a.csv", {"encoding": "base64"}, "none that Python knows"),
        ("a.parquet", {"encoding": "cp1252"}, "is for files of text"),
    ],
)
def test_options_of_text_files_that_cannot_be(tmp_path: Path, name: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        find_sources(write(tmp_path / name, "x"), **options)


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no file matches .*\*\.jsonl"):
        find_sources(str(tmp_path / "*.jsonl"))
    with pytest.raises(JobError, match="there is no file"):
        find_sources(tmp_path / "a.jsonl")
    with pytest.raises(JobError, match="is a folder; name its files"):
        find_sources(tmp_path)


def tree(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, "x")


def test_of_a_folder_the_parquet_files_are_read(tmp_path: Path) -> None:
    tree(
        tmp_path, "b.parquet", "a/d[1].parquet", "a/c.parquet", "_tmp/x.parquet", "a/.y.parquet", "e/z.csv", "_SUCCESS"
    )
    found = [os.path.relpath(source.path, tmp_path) for source in find_sources(tmp_path)]
    assert found == ["a/c.parquet", "a/d[1].parquet", "b.parquet"]
    with pytest.raises(JobError, match="is a folder; name its files"):
        find_sources(tmp_path / "a" / "..", "jsonl") and find_sources(tmp_path / "e")


def test_file_urls_are_paths(tmp_path: Path) -> None:
    tree(tmp_path, "a b/x.csv", "a b/y.csv")
    url = (tmp_path / "a b").as_uri()
    assert "%20" in url
    names = [source.path for source in find_sources([f"{url}/x.csv", f"{url}/*.csv"])]
    assert names == [f"{tmp_path}/a b/{name}.csv" for name in "xxy"]
    assert find_target(f"{url}/out.jsonl.gz", []).path == f"{tmp_path}/a b/out.jsonl.gz"


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
