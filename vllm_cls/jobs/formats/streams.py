"""Byte streams of files, with compression and encoding."""

from __future__ import annotations

import codecs
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from ...errors import JobError
from .files import InputFile
from .finding import STDIO
from .locations import buffered, open_binary

LINE_LIMIT = 64 * 2**20
"""Bytes of the longest line, record or JSON value that is read, so that a damaged file cannot fill the memory."""


RETURNS_ALONE = "its lines end with carriage returns alone, as on old Macs; save it with line feeds."


class InputLine(NamedTuple):
    """One line: its number from 1, its bytes with their ending, and whether the rest of it was skipped."""

    number: int
    data: bytes
    too_long: bool

    def check(self) -> None:
        """Raise `JobError` if it is a file of many lines: the first one, without an end, and with carriage returns inside."""
        if self.number == 1 and not self.data.endswith(b"\n") and b"\r" in self.data.rstrip(b"\r"):
            raise JobError(RETURNS_ALONE)


class Stream:
    """The bytes of one input, decompressed.

    Args:
        raw: the file as it is on disk.
        compression: "gzip", "zstd" or None.
        encoding: of its text, which is read as UTF-8; None is UTF-8.
    """

    def __init__(self, raw: IO[bytes], compression: str | None = None, encoding: str | None = None) -> None:
        self._raw = raw
        self._read = 0
        self._file = decompressed(raw, compression)
        if encoding is not None:
            self._file = io.BufferedReader(_Recoded(self._file, encoding), 2**16)
        self._exact = self._file is raw or not _tells(raw)

    @property
    def offset(self) -> int:
        """Bytes of the file on disk that were used so far; where it is compressed, those its decoder has taken."""
        return self._read if self._exact else self._raw.tell()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._read += len(data)
        return data

    def lines(self) -> Iterator[InputLine]:
        """Its lines, split at \\n only; a byte order mark is dropped.

        Raises:
            JobError: the text is UTF-16.
        """
        number = 0
        while data := self._file.readline(LINE_LIMIT):
            number += 1
            self._read += len(data)
            if number == 1:
                data = without_mark(data)
            too_long = len(data) >= LINE_LIMIT and not data.endswith(b"\n")
            if too_long:
                self._skip_line()
            yield InputLine(number, data, too_long)

    def _skip_line(self) -> None:
        while rest := self._file.readline(LINE_LIMIT):
            self._read += len(rest)
            if rest.endswith(b"\n"):
                return


def without_mark(data: bytes) -> bytes:
    """The first bytes of a text without the byte order mark of UTF-8.

    Raises:
        JobError: the mark of UTF-16.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise JobError("the text is UTF-16, and is read as UTF-8; say --encoding utf-16 (encoding='utf-16').")
    return data.removeprefix(b"\xef\xbb\xbf")


@contextmanager
def open_stream(source: InputFile) -> Iterator[Stream]:
    """An input, open. Whatever is wrong with the file itself becomes a JobError that names it."""
    try:
        if source.path == STDIO:
            if sys.stdin is None:
                raise JobError("it is closed.")
            yield Stream(sys.stdin.buffer, None, source.encoding)
        else:
            with open_binary(source.path) as raw:
                yield Stream(raw, source.compression, source.encoding)
    except JobError as error:
        raise JobError(f"{source.name}: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise JobError(f"{source.name} cannot be read: {reason(error)}.") from error


def reason(error: BaseException) -> str:
    """The message of an OS or decoder error, without errno, path and final period."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text or type(error).__name__).rstrip(".")


def _tells(raw: IO[bytes]) -> bool:
    """Whether a file knows where it is; a pipe does not."""
    try:
        return raw.tell() >= 0
    except OSError:
        return False


class _Recoded(io.RawIOBase):
    """A text of another encoding as UTF-8; what is not in that encoding is no UTF-8 either."""

    def __init__(self, raw: Any, encoding: str) -> None:
        self._raw, self._ready, self._ended = raw, b"", False
        self._decode = codecs.getincrementaldecoder(encoding)(_MARKED).decode

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            data = self._raw.read1(2**16)
            self._ended = not data
            self._ready = self._decode(data, self._ended).encode("utf-8", "surrogateescape")
        used, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(used)] = used
        return len(used)


_MARKED = "vllm_cls.marked"
codecs.register_error(_MARKED, lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]  # becomes the byte 0xff


def decompressed(raw: IO[bytes], compression: str | None) -> IO[bytes]:
    """What `raw` holds, through the decoder of `compression`; it holds one block at a time."""
    if compression == "gzip":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw, mode="rb"), 2**16)
    if compression == "zstd":
        import pyarrow

        return buffered(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd"), 2**16)
    return raw


@contextmanager
def compressed(raw: IO[bytes], compression: str | None) -> Iterator[IO[bytes]]:
    """A stream whose bytes go to `raw` through the encoder of `compression`."""
    if compression == "gzip":
        # no name and no time inside, so that the same rows are the same bytes
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
            yield packed  # type: ignore[misc]
    elif compression == "zstd":
        import pyarrow

        with pyarrow.CompressedOutputStream(pyarrow.PythonFile(raw, mode="w"), "zstd") as native:
            yield native
    else:
        yield raw
