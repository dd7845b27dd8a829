"""Where files are: paths of this machine, or URLs of the file systems that pyarrow opens, such as `s3://bucket/key`."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ...errors import JobError

BLOCK = 8 << 20
"""Bytes that are read of an object at once."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DETAILS = re.compile(r"\s*\(Request ID.*|\.? Detail: .*| error_info=.*", re.DOTALL)
_DENIED = re.compile("ACCESS_DENIED|credential|Forbidden|InvalidAccessKey|SignatureDoesNotMatch|403", re.IGNORECASE)
_SCHEMES = "s3://, gs://, abfs://, hdfs://, hf:// (read only) and file://"


def is_url(name: str) -> bool:
    return _URL.match(name) is not None


def without_scheme(name: str) -> str:
    """A `file:` URL as a path; other names stay."""
    return url2pathname(urlsplit(name).path) if name.lower().startswith("file://") else name


def shown(name: str) -> str:
    """A name as it is told and noted: of a URL without user, password and query."""
    return _join(re.sub("//[^/]*@", "//", _split(name)[0].partition("?")[0]), _split(name)[1]) if is_url(name) else name


def joined(url: str, path: str) -> str:
    """The URL of another path of the same file system."""
    return _join(_split(url)[0], path)


def path_in(url: str) -> str:
    """The path of a URL below its bucket."""
    return _split(url)[1]


def opened(url: str) -> tuple[Any, str]:
    """The pyarrow file system of a URL, and the path in it.

    Raises:
        JobError: there is no such file system, or it does not open.
    """
    root, path = _split(url)
    with told(url, "cannot be opened"):
        system, base = _system(root)
    return system, f"{base.rstrip('/')}/{path}"


@functools.lru_cache(maxsize=64)
def _system(root: str) -> tuple[Any, str]:
    from pyarrow import fs

    system, base = fs.FileSystem.from_uri(root)
    return system, base


def _split(url: str) -> tuple[str, str]:
    """A URL without its path (of which the query belongs to the file system), and the path as it stands."""
    scheme, _, rest = url.partition("://")
    rest, mark, query = rest.partition("?")
    if "=" not in query:  # of a glob
        rest, query = rest + mark + query, ""
    host, _, path = rest.partition("/")
    return f"{scheme.lower()}://{host}/" + (f"?{query}" if query else ""), path


def _join(root: str, path: str) -> str:
    base, mark, query = root.partition("?")
    return f"{base}{path}{mark}{query}"


@contextmanager
def _http_is_os() -> Iterator[None]:
    """Errors of HTTP, which the file system of `hf://` passes on, become those that the others raise."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or not type(error).__module__.startswith("http"):  # http, httpx, httpcore …
            raise
        raise OSError(str(error) or type(error).__name__) from error


@contextmanager
def told(url: str, what: str) -> Iterator[None]:
    """Errors of pyarrow's file systems become one line that names the URL."""
    import pyarrow

    try:
        with _http_is_os():
            yield
    except pyarrow.ArrowInvalid as error:
        raise JobError(f"{shown(url)} {what}: {error}. Known are {_SCHEMES}.") from error
    except (OSError, ImportError, pyarrow.ArrowException) as error:
        text = " ".join(_DETAILS.sub("", str(error)).split()).rstrip(".")
        raise JobError(f"{shown(url)} {what}: {text}.{_hint(text)}") from error


def _hint(text: str) -> str:
    if "NO_SUCH_BUCKET" in text:
        return " Make the bucket first, or name another."
    if _DENIED.search(text):
        return (
            " Credentials come from the environment, as pyarrow takes them: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "a profile or a role; GOOGLE_APPLICATION_CREDENTIALS."
        )
    return ""


class _Native(io.RawIOBase):
    """A pyarrow stream as one that `io.BufferedReader` takes; pyarrow's own `readline` goes byte by byte."""

    def __init__(self, native: Any) -> None:
        self._native = native

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._native.tell())

    def readinto(self, buffer: Any) -> int:
        with _http_is_os():
            data = self._native.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._native.close()
        super().close()


def buffered(native: Any, block: int) -> IO[bytes]:
    """A pyarrow stream as a Python one that reads so many bytes at once."""
    return io.BufferedReader(_Native(native), block)


def open_binary(name: str) -> IO[bytes]:
    """A file of this machine or an object, from its beginning to its end."""
    if not is_url(name):
        return open(name, "rb")
    system, path = opened(name)
    return buffered(system.open_input_stream(path, compression=None), BLOCK)


@contextmanager
def random_access(name: str) -> Iterator[Any]:
    """A pyarrow file that is read at any place; mapped, it would count as memory of this process."""
    import pyarrow

    if is_url(name):
        system, path = opened(name)
        file = system.open_input_file(path)
    else:
        file = pyarrow.OSFile(name)
    with contextlib.closing(file), _http_is_os():
        yield file
