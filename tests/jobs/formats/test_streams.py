from __future__ import annotations

import gzip
import io
import os
import random
import stat
from pathlib import Path

import pytest

from tests.jobs.files import write
from vllm_cls.compat.disk import replacing
from vllm_cls.errors import JobError
from vllm_cls.jobs.formats import streams
from vllm_cls.jobs.formats.files import InputFile
from vllm_cls.jobs.formats.streams import Stream, compressed, open_stream

TEXT = b"one\r\ntwo\nthree"


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_what_is_compressed_is_read_again(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a"
    with open(path, "wb") as raw, compressed(raw, compression) as stream:
        stream.write(TEXT)
    lines = list(Stream(io.BytesIO(path.read_bytes()), compression).lines())
    assert [line.data for line in lines] == [b"one\r\n", b"two\n", b"three"]
    assert [line.number for line in lines] == [1, 2, 3]


def test_gzip_holds_neither_time_nor_name() -> None:
    packed = []
    for _ in range(2):
        raw = io.BytesIO()
        with compressed(raw, "gzip") as stream:
            stream.write(TEXT)
        packed.append(raw.getvalue())
    assert packed[0] == packed[1]
    assert packed[0][4:8] == bytes(4)


def test_several_gzip_members_are_one_text() -> None:
    stream = Stream(io.BytesIO(gzip.compress(b"one\n") + gzip.compress(b"two\n")), "gzip")
    assert [line.data for line in stream.lines()] == [b"one\n", b"two\n"]


def test_offsets_of_plain_files_are_exact() -> None:
    stream = Stream(io.BytesIO(TEXT))
    assert [stream.offset for _ in stream.lines()] == [5, 9, 14]


def test_a_mark_of_utf8_is_dropped_and_utf16_refused(tmp_path: Path) -> None:
    assert [line.data for line in Stream(io.BytesIO(b"\xef\xbb\xbfa\n\xef\xbb\xbfb")).lines()] == [
        b"a\n",
        b"\xef\xbb\xbfb",
    ]
    path = write(tmp_path / "a.txt", "a\n".encode("utf-16"))
    with (
        pytest.raises(JobError, match=r"a\.txt: the text is UTF-16.*--encoding utf-16"),
        open_stream(InputFile(str(path), "txt")) as s,
    ):
        list(s.lines())


def test_the_rest_of_an_endless_line_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LINE_LIMIT", 4)
    lines = list(Stream(io.BytesIO(b"abcdefghijk\nab\nabcd\n")).lines())
    assert [(line.number, line.too_long) for line in lines] == [(1, True), (2, False), (3, True)]
    assert lines[1].data == b"ab\n"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_was_cut_ends_the_job(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.txt{suffix}", random.randbytes(5000))
    path.write_bytes(path.read_bytes()[:-100])
    kind = {".gz": "gzip", ".zst": "zstd"}[suffix]
    with pytest.raises(JobError, match=r"a\.txt.* cannot be read"), open_stream(InputFile(str(path), "txt", kind)) as s:
        list(s.lines())


def test_replacing_takes_the_place_at_the_end(tmp_path: Path) -> None:
    target = write(tmp_path / "out.txt", "old")
    target.chmod(0o640)
    with replacing(target) as temporary:
        assert os.path.dirname(temporary) == str(tmp_path)
        assert temporary.endswith("out.txt")
        Path(temporary).write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["out.txt"]


def test_after_an_error_nothing_has_changed(tmp_path: Path) -> None:
    target = write(tmp_path / "out.txt", "old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as temporary:
        Path(temporary).write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_new_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with replacing(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("out")
    with replacing(tmp_path / "link") as temporary:
        Path(temporary).write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "out").read_text() == "new"
