"""Jobs that end early and are taken up again, and outputs that are there already."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.models import tiny
from vllm_cls import LLM
from vllm_cls.errors import ConfigError, JobError
from vllm_cls.jobs.classify import classify_file
from vllm_cls.jobs.report.job_report import JobReport
from vllm_cls.jobs.report.progress import JobProgress
from vllm_cls.jobs.resume import fingerprints, parts
from vllm_cls.jobs.resume.work_folder import open_work_folder
from vllm_cls.jobs.score import score_file

from .fake import FakeLLM
from .files import jsonl, write

Progress = Callable[[JobProgress], None]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 4)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    texts = ["good one", "bad", "BOOM", "", "a good day of it", "good", "x" * 60, "nothing", "good", "the end"]
    return jsonl(tmp_path / "in.jsonl", [{"id": i, "text": text, "label": "positive"} for i, text in enumerate(texts)])


def stopping_at(row: int, error: BaseException) -> Progress:
    def stop(told: JobProgress) -> None:
        if told.rows == row:
            raise error

    return stop


def stopped(llm: Any, source: Path, out: Path, at: int = 9, **options: Any) -> str:
    """Run a job that is interrupted at a row; what it says."""
    with pytest.raises(KeyboardInterrupt) as raised:
        classify_file(llm, source, out, on_progress=stopping_at(at, KeyboardInterrupt()), **options)
    return str(raised.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv.gz", "jsonl.zst", "parquet", "txt"])
@pytest.mark.parametrize("at", [4, 5, 10])
def test_an_interrupted_job_goes_on(rows: Path, tmp_path: Path, suffix: str, at: int) -> None:
    options = {"label_field": "label", "scores": suffix != "txt"}
    clean = classify_file(FakeLLM(), rows, tmp_path / f"clean.{suffix}", **options)
    llm, out = FakeLLM(), tmp_path / f"out.{suffix}"
    kept = at // 4 * 4  # what was answered is written yet
    said = stopped(llm, rows, out, at, **options)
    assert not out.exists()
    if kept:
        assert said == (
            f"interrupted. {kept} finished rows are kept in {out}.parts: the same command goes on from there."
        )
    llm.seen.clear()
    report = classify_file(llm, rows, out, **options)
    assert out.read_bytes() == (tmp_path / f"clean.{suffix}").read_bytes()
    assert {prompt["fields"]["id"] for prompt in llm.seen} == {i for i in range(kept, 10) if i != 3}
    report.seconds, report.output = clean.seconds, clean.output
    if kept:
        assert report.notes.pop(0) == f"{kept} rows that an earlier run has finished are not run again"
    assert report == clean
    assert report.causes == {"the tokenizer refuses this text": 1, "the field 'text' is empty": 1}
    assert names(tmp_path) == sorted(["in.jsonl", f"clean.{suffix}", f"out.{suffix}"])


def test_nothing_is_left_of_a_job_that_has_finished_no_part(rows: Path, tmp_path: Path) -> None:
    assert stopped(FakeLLM(), rows, tmp_path / "out.jsonl", 3) == "interrupted"
    assert names(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_the_numbers_of_a_real_model_do_not_depend_on_where_it_was_interrupted(tmp_path: Path, name: str) -> None:
    model = tiny.classifier(name, tmp_path / "model")
    texts = ["The film was " + " ".join(["good"] * (i % 7)) for i in range(20)]
    path = jsonl(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    classify_file(str(model), path, tmp_path / "clean.jsonl")
    with LLM(str(model)) as llm:
        for at in (7, 15):
            stopped(llm, path, tmp_path / "out.jsonl", at)
    with LLM(str(model)) as llm:
        classify_file(llm, path, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "clean.jsonl").read_bytes()


def test_spans_and_scores_go_on(tmp_path: Path) -> None:
    model = tiny.token_classifier("bert", tmp_path / "model")
    path = jsonl(tmp_path / "in.jsonl", [{"text": f"Ada went to London {'now ' * i}"} for i in range(10)])
    with LLM(str(model)) as llm:
        classify_file(llm, path, tmp_path / "clean.parquet")
        stopped(llm, path, tmp_path / "out.parquet")
        classify_file(llm, path, tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "clean.parquet").read_bytes()
    pairs = jsonl(tmp_path / "pairs.jsonl", [{"query": "good", "document": str(i)} for i in range(10)])
    llm, out = FakeLLM(labels=("x",)), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_file(llm, pairs, out, on_progress=stopping_at(9, KeyboardInterrupt()))
    llm.seen.clear()
    assert score_file(llm, pairs, out).rows == 10
    assert len(llm.seen) == 2


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"threshold": 0.5, "top_k": 2}, "options top_k: null → 2"),
        ({"keep_fields": "id"}, 'options keep_fields: "all" → "id"'),
        ({"text_field": "label"}, 'options fields text: "text" → "label"'),
    ],
)
def test_other_options_are_refused(rows: Path, tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    out = tmp_path / "out.jsonl"
    stopped(FakeLLM(), rows, out)
    with pytest.raises(JobError) as raised:
        classify_file(FakeLLM(), rows, out, **changed)
    assert "begun by another job, of which 8 rows are kept, and this one differs: " + told + ". --restart" in str(
        raised.value
    )
    assert classify_file(FakeLLM(), rows, out).rows == 10  # what is kept was not lost by asking


def test_other_inputs_are_refused(rows: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out.jsonl", rows.read_text()
    stopped(FakeLLM(), rows, out)
    write(rows, data.replace("bad", "mad"))  # of the same size
    with pytest.raises(JobError, match="differs: inputs 1 sha256: "):
        classify_file(FakeLLM(), rows, out)
    write(rows, data)  # at another time
    other = jsonl(tmp_path / "other.jsonl", [{"text": "x"}])
    with pytest.raises(JobError, match=r"inputs 2 path: nothing → .*other\.jsonl"):
        classify_file(FakeLLM(), [rows, other], out)
    assert classify_file(FakeLLM(), rows, out).rows == 10


def test_a_large_input_is_known_by_its_ends_and_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "WHOLE", 4)
    path = write(tmp_path / "a", "0123456789")
    first = fingerprints.of_file(path)
    os.utime(path, ns=(1, first["mtime_ns"]))
    assert fingerprints.of_file(path) == first
    for changed in ("x123456789", "012345678x"):
        write(path, changed)
        os.utime(path, ns=(1, first["mtime_ns"]))
        assert fingerprints.of_file(path) != first
    write(path, "01234x6789")
    os.utime(path, ns=(1, first["mtime_ns"] + 10**9))
    assert fingerprints.of_file(path) != first


def test_another_model_is_refused(tmp_path: Path) -> None:
    model = tiny.classifier("bert", tmp_path / "model")
    path, out = jsonl(tmp_path / "in.jsonl", [{"text": "good"}] * 10), tmp_path / "out.jsonl"
    with LLM(str(model)) as llm:
        stopped(llm, path, out)
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with LLM(str(model)) as llm, pytest.raises(JobError, match=r"differs: model files .*model\.safetensors sha256: "):
        classify_file(llm, path, out)
    with (
        LLM(str(model), max_model_len=8) as llm,
        pytest.raises(JobError, match=r"model max_model_len: 48 → 8"),
    ):
        classify_file(llm, path, out)
    with LLM(str(model)) as llm:
        assert classify_file(llm, path, out, restart=True).rows == 10


def test_restart_begins_anew(rows: Path, tmp_path: Path) -> None:
    llm, out = FakeLLM(), tmp_path / "out.jsonl"
    stopped(llm, rows, out)
    llm.seen.clear()
    classify_file(llm, rows, out, top_k=1, restart=True)
    assert len(llm.seen) == 9
    assert llm.parts == 6  # of each part, the prefix cache begins empty
    assert json.loads(out.read_text().splitlines()[0])["top_k"]


def test_an_output_that_is_there_is_not_replaced(rows: Path, tmp_path: Path) -> None:
    out = write(tmp_path / "out.jsonl", "old")
    FakeLLM.made.clear()
    for options in ({}, {"restart": True}):
        with pytest.raises(JobError, match=r"out\.jsonl is there already; --overwrite"):
            classify_file("model", rows, out, **options)  # type: ignore[arg-type]
    assert out.read_text() == "old" and names(tmp_path) == ["in.jsonl", "out.jsonl"]
    assert FakeLLM.made == []
    stopped(FakeLLM(), rows, out, overwrite=True)
    assert out.read_text() == "old"
    classify_file(FakeLLM(), rows, out, overwrite=True)
    assert len(out.read_text().splitlines()) == 10


def test_two_runs_on_one_output_are_refused(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    (tmp_path / "link.jsonl").symlink_to(out)
    with open_work_folder(out):
        for path in (out, tmp_path / "link.jsonl"):
            with pytest.raises(JobError, match="another run is at work on"):
                classify_file(FakeLLM(), rows, path, overwrite=True, restart=True)
    assert classify_file(FakeLLM(), rows, out).rows == 10


def part(folder: Path, index: int) -> Path:
    (found,) = folder.glob(f"part-{index:06d}.*")
    return found


@pytest.mark.parametrize("damage", ["changed", "cut", "empty", "longer"])
def test_a_damaged_part_costs_itself_alone(rows: Path, tmp_path: Path, damage: str) -> None:
    classify_file(FakeLLM(), rows, tmp_path / "clean.jsonl")
    llm, out = FakeLLM(), tmp_path / "out.jsonl"
    stopped(llm, rows, out)
    folder = tmp_path / "out.jsonl.parts"
    for name in (".tmp-12345678", "part-000002.4.jsonl", "other"):
        (folder / name).write_bytes(b"half")
    first = part(folder, 0)
    data = first.read_bytes()
    damaged = {"changed": data.replace(b"0.8", b"0.7"), "cut": data[:-1], "empty": b"", "longer": data + b"\n"}
    first.write_bytes(damaged[damage])
    llm.seen.clear()
    stopped(llm, rows, out, 9)
    assert [prompt["fields"]["id"] for prompt in llm.seen] == [0, 1, 2, 8]
    assert names(folder) == ["lock", "manifest.json", part(folder, 0).name, part(folder, 1).name]
    llm.seen.clear()
    classify_file(llm, rows, out)
    assert [prompt["fields"]["id"] for prompt in llm.seen] == [8, 9]
    assert out.read_bytes() == (tmp_path / "clean.jsonl").read_bytes()


def test_an_output_that_is_whole_while_its_parts_are_left_is_known(rows: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "out.jsonl", Path(f"{tmp_path}/out.jsonl.parts")
    stopped(FakeLLM(), rows, out)
    kept = {file.name: file.read_bytes() for file in folder.iterdir()}
    classify_file(FakeLLM(), rows, out)
    whole = out.read_bytes()
    for left in (kept, {}):  # at the last, what knows the output is there alone
        for changed in (1, 0):
            found = os.stat(out)
            identity = json.dumps([found.st_ino, found.st_size, found.st_mtime_ns - changed])
            folder.mkdir(exist_ok=True)
            for name, data in {**left, "output.json": f"[{identity}, [1, 2, 3]]".encode()}.items():
                (folder / name).write_bytes(data)
            if changed:
                with pytest.raises(JobError, match="is there already"):
                    classify_file(FakeLLM(), rows, out)
        assert classify_file(FakeLLM(), rows, out).rows == 10
        assert out.read_bytes() == whole and names(tmp_path) == ["in.jsonl", "out.jsonl"]


@contextmanager
def piped(path: Path, data: bytes) -> Iterator[Path]:
    """A pipe that gives these bytes, and ends."""
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    try:
        yield path
    finally:
        writer.join()
        path.unlink()


def given(monkeypatch: pytest.MonkeyPatch, data: bytes) -> str:
    """Standard input with these bytes."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return "-"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_standard_input_goes_on_if_it_is_given_again(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    llm, out, data = FakeLLM(), tmp_path / f"out.{suffix}", rows.read_bytes()
    classify_file(llm, given(monkeypatch, data), tmp_path / f"clean.{suffix}")
    said = stopped(llm, given(monkeypatch, data), out)  # type: ignore[arg-type]
    assert said.startswith("interrupted. 8 finished rows are kept")
    llm.seen.clear()
    assert classify_file(llm, given(monkeypatch, data), out).rows == 10
    assert [prompt["fields"]["id"] for prompt in llm.seen] == [8, 9]
    assert out.read_bytes() == (tmp_path / f"clean.{suffix}").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0].replace(b"good", b"goad"), *lines[1:]],
        lambda lines: [*lines[:7], b"not JSON\n", *lines[8:]],
        lambda lines: lines[:6],
        lambda lines: [lines[1], lines[0], *lines[2:]],
    ],
)
def test_other_rows_of_standard_input_are_refused(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    out, data = tmp_path / "out.jsonl", rows.read_bytes()
    stopped(FakeLLM(), given(monkeypatch, data), out)  # type: ignore[arg-type]
    other = b"".join(change(data.splitlines(keepends=True)))
    with pytest.raises(
        JobError, match=r"rows [15] to [48] of the inputs are not those that part-00000[01]\..* was made of; --restart"
    ):
        classify_file(FakeLLM(), given(monkeypatch, other), out)
    assert not out.exists()
    llm = FakeLLM()
    assert classify_file(llm, given(monkeypatch, data), out).rows == 10  # what is kept was not lost by asking
    assert len(llm.seen) == 2


def test_a_pipe_goes_on_under_another_name(rows: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with piped(data / "a.jsonl", rows.read_bytes()) as pipe:
        stopped(FakeLLM(), pipe, tmp_path / "out.jsonl")
    llm = FakeLLM()
    with piped(data / "b.jsonl", rows.read_bytes()) as pipe:
        classify_file(llm, pipe, tmp_path / "out.jsonl")
    assert [prompt["fields"]["id"] for prompt in llm.seen] == [8, 9]


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """Files of this process get no longer than so many bytes."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, full_disk: Callable[[int], None], suffix: str) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"id": i, "text": f"good {i} " + "x" * (i * 9)} for i in range(100)])
    out = tmp_path / f"out.{suffix}"
    classify_file(FakeLLM(), path, tmp_path / f"clean.{suffix}")
    size = (tmp_path / f"clean.{suffix}").stat().st_size
    full_disk(size * 2 // 3)
    with pytest.raises(JobError) as raised:
        classify_file(FakeLLM(), path, out)
    text = str(raised.value)
    assert text.startswith(f"{out} cannot be written: ") and "File too large" in text
    assert text.endswith(f"finished rows are kept in {out}.parts: the same command goes on from there.")
    assert not out.exists() and not [name for name in names(tmp_path / f"{out.name}.parts") if name.startswith(".tmp")]
    full_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    llm = FakeLLM()
    classify_file(llm, path, out)
    assert len(llm.seen) < 100
    assert out.read_bytes() == (tmp_path / f"clean.{suffix}").read_bytes()


def test_too_many_bad_rows_end_a_job_and_the_rest_is_kept(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(JobError, match=rf"more than 0 rows failed: {rows}, line 3: the tokenizer refuses this text\."):
        classify_file(FakeLLM(), rows, out, on_error="fail")
    assert names(tmp_path) == ["in.jsonl"]
    bad = jsonl(tmp_path / "bad.jsonl", [{"text": text} for text in ["good"] * 4 + ["", "BOOM", "", "good"]])
    with pytest.raises(JobError, match=r"more than 2 rows failed: .*line 7: .*is empty. 4 finished rows are kept"):
        classify_file(FakeLLM(), bad, out, max_errors=2)
    assert classify_file(FakeLLM(), bad, out, max_errors=3).failed == 3  # the limit changes no row
    for options in ({"on_error": "stop"}, {"max_errors": -1}, {"on_error": "fail", "max_errors": 1}):
        with pytest.raises(ConfigError):
            classify_file(FakeLLM(), bad, out, **options)  # type: ignore[arg-type]


def test_causes_are_counted_without_what_is_of_one_row(tmp_path: Path) -> None:
    lines = ['{"text": "good"}', "broken", '{"text": "x" 1}', '{"a": 1}', '{"b": 1}', '{"text": 1}', '{"text": "NAN"}']
    bad_bytes = [b'{"text": "\xff"}', b'{"text": "a \xff"}']
    path = write(tmp_path / "in.jsonl", "\n".join(lines).encode() + b"\n" + b"\n".join(bad_bytes) + b"\n")
    assert classify_file(FakeLLM(), path, tmp_path / "out.jsonl").causes == {
        "not JSON": 2,
        "no field 'text'": 2,
        "the field 'text' is not a text but a number": 1,
        "the model gave [nan, nan], which is not finite": 1,
        "invalid UTF-8 at byte … of the line": 2,
    }


def test_causes_name_what_was_wrong_with_an_image_or_a_request() -> None:
    reasons = {
        "image: '/a/b: c.png' cannot be read: No such file or directory.": "image: … cannot be read",
        'image 2 of 3: "it\'s.png" cannot be read: Permission denied.': "image: … cannot be read",
        "image: the image is broken: it ends early.": "image: the image is broken",
        "image: 'host.example' did not answer in time.": "image: … did not answer in time",
        "image: it is empty.": "image: it is empty",
        "messages[0].content[1], video_url: it is empty.": "messages[…].content[…], video_url: it is empty",
        "input: Input should be a text (400)": "input: Input should be a text (…)",
        "method must be POST or GET, and is 'DELETE'": "method must be POST or GET, and is …",
        "the model's processor refuses this image: it is thin": "the model's processor refuses this image",
    }
    report = JobReport()
    for reason in reasons:
        report.fail("a place", reason)
    assert report.causes == {cause: list(reasons.values()).count(cause) for cause in reasons.values()}
