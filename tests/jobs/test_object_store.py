"""The same job from and to an object store: moto's S3 server on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from vllm_cls.errors import JobError
from vllm_cls.jobs.classify import classify_file
from vllm_cls.jobs.formats.files import find_sources, find_target
from vllm_cls.jobs.formats.locations import told
from vllm_cls.jobs.formats.readers import columns_of, read_rows
from vllm_cls.jobs.resume import object_lock, parts, stores
from vllm_cls.jobs.resume.work_folder import open_work_folder

from .fake import FakeLLM
from .files import jsonl, write
from .test_resume import stopped

KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("moto.server")
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    served = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    yield f"{host}:{port}"
    served.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> fs.S3FileSystem:
    """An empty bucket `data`; `s3://data/…` leads to it."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": f"http://{server}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(parts, "PART_ROWS", 4)
    system = fs.S3FileSystem(
        access_key="id", secret_key="secret", endpoint_override=server, scheme="http", allow_bucket_creation=True
    )
    system.create_dir("data")
    system.delete_dir_contents("data", missing_dir_ok=True)
    return system


def put(system: fs.S3FileSystem, folder: Path) -> None:
    """The files of a folder as objects."""
    for path in folder.rglob("*"):
        if path.is_file():
            with system.open_output_stream(f"data/{path.relative_to(folder)}", compression=None) as stream:
                stream.write(path.read_bytes())


def get(system: fs.S3FileSystem, key: str) -> bytes:
    with system.open_input_stream(f"data/{key}", compression=None) as stream:
        return bytes(stream.read())


def keys(system: fs.S3FileSystem) -> list[str]:
    found = system.get_file_info(fs.FileSelector("data", recursive=True))
    return sorted(info.path.removeprefix("data/") for info in found if info.type == fs.FileType.File)


ROWS = [
    {"id": i, "text": text}
    for i, text in enumerate(["good", "bad", "BOOM", "", "a good day", "x" * 60, "nothing", "good", "the end", "good"])
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    return made


def test_inputs_of_every_format(s3: fs.S3FileSystem, folder: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "a b/d.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        write(folder / name, lines)
    write(folder / "e.json", json.dumps(ROWS))
    write(folder / "f.csv", "id;text\n1;caf\xe9\n".encode("cp1252"))
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, folder / "g.parquet")
    with pa.ipc.new_file(folder / "h.arrow", table.schema) as writer:
        writer.write_table(table)
    put(s3, folder)
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "a b/d.jsonl", "e.json", "g.parquet", "h.arrow"):
        (source,) = find_sources(f"s3://data/{name}")
        rows = list(read_rows([source]))
        assert [row.fields for row in rows] == ROWS
        assert (source.name, source.size, rows[-1].done) == (f"s3://data/{name}", (folder / name).stat().st_size, 1.0)
    sources = find_sources("s3://data/f.csv", delimiter=";", encoding="cp1252")
    assert columns_of(sources[0]) == ["id", "text"]
    assert [row.fields for row in read_rows(sources)] == [{"id": "1", "text": "caf\xe9"}]


def test_globs_and_folders(s3: fs.S3FileSystem, folder: Path, server: str) -> None:
    for name in ("a/1.jsonl", "a/2.jsonl", "a/x/3.jsonl", "a/y/z/4.jsonl", "b/5.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, "{}\n")
    for key, number in (("k=1/l=x", 0), ("k=2/l=y", 1), ("_old/l=z", 2)):
        (folder / "h" / key).mkdir(parents=True)
        pq.write_table(pa.table({"n": [number]}), folder / "h" / key / "part.parquet")
    put(s3, folder)
    for pattern, found in {
        "a/*.jsonl": ["a/1.jsonl", "a/2.jsonl"],
        "a/[!1].jsonl": ["a/2.jsonl"],
        "a/**/*.jsonl": ["a/1.jsonl", "a/2.jsonl", "a/x/3.jsonl", "a/y/z/4.jsonl"],
        "?/*.csv": ["b/5.csv"],
        "*/*/3.jsonl": ["a/x/3.jsonl"],
    }.items():
        assert [source.name for source in find_sources(f"s3://data/{pattern}")] == [f"s3://data/{key}" for key in found]
    in_url = f"s3://id:secret@data/a/*.jsonl?endpoint_override={server}&scheme=http"
    sources = find_sources(in_url)
    assert [source.name for source in sources] == ["s3://data/a/1.jsonl", "s3://data/a/2.jsonl"]
    assert len(list(read_rows(sources))) == 2
    for given in ("s3://data/h", "s3://data/h/", "s3://data/h/k=*/*/*.parquet"):
        rows = [row.fields for row in read_rows(find_sources(given))]
        assert rows == [{"n": 0, "k": 1, "l": "x"}, {"n": 1, "k": 2, "l": "y"}]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://data/none.jsonl", "there is no file 's3://data/none.jsonl'"),
        ("s3://nowhere/a.jsonl", "there is no file 's3://nowhere/a.jsonl', or its bucket is not open"),
        ("s3://data/*.jsonl", r"no file matches 's3://data/\*.jsonl'"),
        ("s3://nowhere/*.jsonl", r"no file matches 's3://nowhere/\*.jsonl', or its bucket is not open"),
        ("s3://data/folder", "is a folder; name its files"),
        ("ftp://data/a.jsonl", "ftp://data/a.jsonl cannot be opened: Unrecognized filesystem .* Known are s3://"),
    ],
)
def test_inputs_that_are_not_there(s3: fs.S3FileSystem, folder: Path, url: str, says: str) -> None:
    (folder / "folder").mkdir()
    write(folder / "folder" / "a.csv", "x")
    put(s3, folder)
    with pytest.raises(JobError, match=says) as raised:
        find_sources(url)
    assert "\n" not in str(raised.value) and "Request ID" not in str(raised.value)


def test_outputs_that_cannot_be(s3: fs.S3FileSystem, folder: Path) -> None:
    jsonl(folder / "in.jsonl", ROWS)
    put(s3, folder)
    source = find_sources("s3://data/in.jsonl")
    for url, says in {
        "s3://data/in.jsonl": "is also an input",
        "s3://data/": "is a folder",
        "hf://datasets/a/b/out.jsonl": "read only",
    }.items():
        with pytest.raises(JobError, match=says):
            find_target(url, source)
    with pytest.raises(JobError, match="s3://nowhere/out.jsonl cannot be written: .*NO_SUCH_BUCKET.* Make the bucket"):
        classify_file(FakeLLM(), "s3://data/in.jsonl", "s3://nowhere/out.jsonl")


@pytest.mark.parametrize("suffix", ["jsonl.gz", "csv", "parquet", "arrow"])
def test_a_job_from_and_to_objects_goes_on(s3: fs.S3FileSystem, folder: Path, tmp_path: Path, suffix: str) -> None:
    source = jsonl(folder / "in.jsonl", ROWS)
    put(s3, folder)
    classify_file(FakeLLM(), source, tmp_path / f"clean.{suffix}")
    llm, url = FakeLLM(), f"s3://data/out.{suffix}"
    said = stopped(llm, "s3://data/in.jsonl", url)  # type: ignore[arg-type]
    assert said == f"interrupted. 8 finished rows are kept in {url}.parts: the same command goes on from there."
    kept = [key for key in keys(s3) if key != "in.jsonl"]
    assert [key.partition("parts/")[2][:11] for key in kept] == ["manifest.js", "part-000000", "part-000001"]
    llm.seen.clear()
    report = classify_file(llm, "s3://data/in.jsonl", url)
    assert (report.rows, report.output, len(llm.seen)) == (10, url, 2)
    assert get(s3, f"out.{suffix}") == (tmp_path / f"clean.{suffix}").read_bytes()
    assert keys(s3) == ["in.jsonl", f"out.{suffix}"]
    with pytest.raises(JobError, match=rf"the output {url} is there already; --overwrite"):
        classify_file(llm, "s3://data/in.jsonl", url)
    classify_file(llm, "s3://data/in.jsonl", url, overwrite=True)


class WithoutFolders:
    """As Google Cloud Storage: a prefix goes with its last object, and cannot be removed then."""

    def __init__(self, system: fs.S3FileSystem) -> None:
        self._system = system

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)

    def delete_file(self, path: str) -> None:
        self._system.delete_file(path)
        folder = path.rpartition("/")[0]
        if not any(each.type == fs.FileType.File for each in self._system.get_file_info(fs.FileSelector(folder))):
            self._system.delete_dir(folder)

    def delete_dir(self, path: str) -> None:
        if self._system.get_file_info(path).type == fs.FileType.NotFound:
            raise OSError(f"No such directory: {path}")
        self._system.delete_dir(path)


def test_a_store_without_folders(s3: fs.S3FileSystem, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "opened", lambda url: (WithoutFolders(s3), url.removeprefix("s3://")))
    assert classify_file(FakeLLM(), jsonl(folder / "in.jsonl", ROWS), "s3://data/out.jsonl").rows == 10
    assert keys(s3) == ["out.jsonl"]


def test_changed_inputs_and_damaged_parts(s3: fs.S3FileSystem, folder: Path) -> None:
    jsonl(folder / "in.jsonl", ROWS)
    put(s3, folder)
    url = "s3://data/out.jsonl"
    stopped(FakeLLM(), "s3://data/in.jsonl", url)  # type: ignore[arg-type]
    with pytest.raises(JobError, match=r"begun by another job.* options top_k: null → 2"):
        classify_file(FakeLLM(), "s3://data/in.jsonl", url, top_k=2)
    first = next(key for key in keys(s3) if "part-000000" in key)
    with s3.open_output_stream(f"data/{first}") as stream:
        stream.write(b"x")
    llm = FakeLLM()
    classify_file(llm, "s3://data/in.jsonl", url)
    assert [prompt["fields"]["id"] for prompt in llm.seen] == [0, 1, 2, 8, 9]
    stopped(FakeLLM(), "s3://data/in.jsonl", url, overwrite=True)  # type: ignore[arg-type]
    jsonl(folder / "in.jsonl", [*ROWS, ROWS[0]])
    put(s3, folder)
    with pytest.raises(JobError, match=r"begun by another job.* inputs 1 size: "):
        classify_file(FakeLLM(), "s3://data/in.jsonl", url, overwrite=True)


def test_an_output_that_is_whole_while_its_parts_are_left_is_known(
    s3: fs.S3FileSystem, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jsonl(folder / "in.jsonl", ROWS)
    put(s3, folder)
    url = "s3://data/out.jsonl"
    with open_work_folder(url) as work:
        monkeypatch.setattr(type(work), "remove", lambda work: None)
    classify_file(FakeLLM(), "s3://data/in.jsonl", url)
    monkeypatch.undo()
    whole = get(s3, "out.jsonl")
    assert len(keys(s3)) == 7  # the parts, what they depend on, what the output is
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": f"http://{s3_address(s3)}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(parts, "PART_ROWS", 4)
    with s3.open_output_stream("data/out.jsonl") as stream:
        stream.write(whole[:-2] + b"x\n")
    with pytest.raises(JobError, match="is there already"):
        classify_file(FakeLLM(), "s3://data/in.jsonl", url)
    with s3.open_output_stream("data/out.jsonl") as stream:
        stream.write(whole)
    llm = FakeLLM()
    classify_file(llm, "s3://data/in.jsonl", url)
    assert llm.seen == [] and get(s3, "out.jsonl") == whole and keys(s3) == ["in.jsonl", "out.jsonl"]


def s3_address(system: fs.S3FileSystem) -> str:
    return str(system.__reduce__()[1][0]["endpoint_override"])


def lock(system: fs.S3FileSystem, **holder: Any) -> None:
    with system.open_output_stream("data/out.jsonl.parts/lock") as stream:
        stream.write(json.dumps({"host": os.uname().nodename, "pid": os.getpid(), **holder}).encode())


def test_two_runs_on_one_object_are_refused(s3: fs.S3FileSystem, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(folder / "in.jsonl", ROWS)
    put(s3, folder)

    def run() -> int:
        return classify_file(FakeLLM(), "s3://data/in.jsonl", "s3://data/out.jsonl", overwrite=True).rows

    with open_work_folder("s3://data/out.jsonl"), pytest.raises(JobError, match="another run is at work on s3://data"):
        run()
    assert run() == 10
    for holder in ({"host": "elsewhere"}, {"pid": os.getppid()}):
        lock(s3, **holder)
        with pytest.raises(JobError, match=r"It runs on .* \(process \d+\); if it died there, .* in 5 minutes"):
            run()
        assert keys(s3) == ["in.jsonl", "out.jsonl", "out.jsonl.parts/lock"]
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    for holder in ({"pid": ended.pid}, {}):  # of this machine, and gone: a number may be given again
        lock(s3, **holder)
        assert run() == 10
    lock(s3, host="elsewhere")
    monkeypatch.setattr(object_lock, "DEAD", -1.0)
    assert run() == 10
    assert keys(s3) == ["in.jsonl", "out.jsonl"]


def test_a_lock_is_renewed(s3: fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_lock, "RENEWED", 0.001)
    with open_work_folder("s3://data/out.jsonl"):
        s3.delete_file("data/out.jsonl.parts/lock")
        while "out.jsonl.parts/lock" not in keys(s3):
            pass
    assert keys(s3) == []


JOB = """
import os, signal, sys
from tests.jobs.fake import FakeLLM
from vllm_cls.jobs.classify import classify_file
from vllm_cls.jobs.resume import parts
from vllm_cls.jobs.resume.work_folder import WorkFolder
parts.PART_ROWS = 4
keep = WorkFolder.keep_part

def kept(work, index, *more):
    keep(work, index, *more)
    if index == 1:
        os.kill(os.getpid(), signal.SIGKILL)

WorkFolder.keep_part = kept
classify_file(FakeLLM(), "s3://data/in.jsonl", sys.argv[1])
"""


def test_a_killed_job_goes_on(s3: fs.S3FileSystem, folder: Path, tmp_path: Path) -> None:
    source = jsonl(folder / "in.jsonl", ROWS)
    put(s3, folder)
    classify_file(FakeLLM(), source, tmp_path / "clean.parquet")
    done = subprocess.run([sys.executable, "-c", JOB, "s3://data/out.parquet"], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    llm = FakeLLM()
    report = classify_file(llm, "s3://data/in.jsonl", "s3://data/out.parquet")
    assert report.notes[0] == "8 rows that an earlier run has finished are not run again"
    assert len(llm.seen) == 2
    assert get(s3, "out.parquet") == (tmp_path / "clean.parquet").read_bytes()
    assert keys(s3) == ["in.jsonl", "out.parquet"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "When reading 'a' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject operation: No response body.",
            "ACCESS_DENIED during HeadObject operation: No response body. Credentials come from the environment, as pyarrow",
        ),
        ("AWS Error NETWORK_CONNECTION: timed out (Request ID: 1)\nmore", "NETWORK_CONNECTION: timed out."),
        ("Path does not exist 'b/a'. Detail: [errno 2] No such file", "cannot be read: Path does not exist 'b/a'."),
    ],
)
def test_errors_of_a_store_are_one_line(text: str, says: str) -> None:
    with pytest.raises(JobError) as raised, told("s3://id:secret@b/a?scheme=http", "cannot be read"):
        raise OSError(text)
    assert str(raised.value).startswith("s3://b/a cannot be read: ") and says in str(raised.value)
    assert "\n" not in str(raised.value) and "Request" not in str(raised.value)
