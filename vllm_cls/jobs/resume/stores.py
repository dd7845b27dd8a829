"""Where a job keeps what it has finished: a folder of this machine, or objects below a prefix. A file is whole or not there."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from ...compat.disk import flush, flush_path, replacing
from ..formats.locations import is_url, joined, opened, path_in, shown, told
from .lock import locked
from .object_lock import locked_object

SUFFIX = ".parts"


class Store(Protocol):
    """Files beside an output.

    Args:
        output: the name of the output, as users know it.
        name: of the place itself.
    """

    output: str
    name: str

    def locked(self, busy: str) -> AbstractContextManager[None]:
        """Hold the place alone; JobError with the message `busy` where another run does."""

    def names(self) -> list[str]:
        """Of the files that are there."""

    def open(self, name: str) -> IO[bytes]:
        """A file, from its beginning."""

    def new(self) -> AbstractContextManager[IO[bytes]]:
        """A new file without a name, which is gone at the end unless it was kept."""

    def keep(self, file: IO[bytes], name: str) -> None:
        """Give a new file its name; on return it outlasts a power cut."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def remove_place(self) -> None:
        """Remove the place itself, when its files are gone."""

    def output_exists(self) -> bool: ...

    def new_output(self) -> AbstractContextManager[str]:
        """The path of a new file, which is the output when the context ends without an error."""

    def identity(self, path: str) -> list[Any]:
        """By what a new file is known when it is the output."""

    def output_is(self, identity: list[Any]) -> bool: ...


def store_of(output: str | os.PathLike[str]) -> Store:
    """The place of an output: `OUT.parts` beside it."""
    name = os.fspath(output)
    return ObjectStore(name) if is_url(name) else FolderStore(Path(name))


class FolderStore:
    """A folder; beside the file that a link leads to, if the output is a link."""

    def __init__(self, output: Path) -> None:
        self.output, self._output = str(output), output
        self._folder = Path(os.path.realpath(output) + SUFFIX)
        self.name = str(self._folder)

    def locked(self, busy: str) -> AbstractContextManager[None]:
        return locked(self._folder, busy)

    def names(self) -> list[str]:
        return os.listdir(self._folder)

    def open(self, name: str) -> IO[bytes]:
        return open(self._folder / name, "rb")

    @contextmanager
    def new(self) -> Iterator[IO[bytes]]:
        path = self._folder / f".tmp-{os.urandom(4).hex()}"
        try:
            with open(path, "x+b") as file:
                yield file
        finally:
            path.unlink(missing_ok=True)

    def keep(self, file: IO[bytes], name: str) -> None:
        flush(file)
        os.replace(file.name, self._folder / name)
        flush_path(self._folder)

    def remove(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def remove_place(self) -> None:
        with suppress(OSError):  # another run has it now
            self._folder.rmdir()

    def output_exists(self) -> bool:
        return self._output.exists()

    def new_output(self) -> AbstractContextManager[str]:
        return replacing(self._output, self._folder if self._folder.is_dir() else None)

    def identity(self, path: str) -> list[Any]:
        """What a file keeps when it gets another name."""
        found = os.stat(path)
        return [found.st_ino, found.st_size, found.st_mtime_ns]

    def output_is(self, identity: list[Any]) -> bool:
        return self._output.exists() and self.identity(str(self._output)) == identity


class ObjectStore:
    """Objects of a pyarrow file system. They have no new name: what is kept is made here, and then sent."""

    def __init__(self, url: str) -> None:
        self._url, self.output = url, shown(url)
        self._system, self._path = opened(url)
        self._folder = self._path + SUFFIX
        self.name = shown(joined(url, path_in(url) + SUFFIX))

    def locked(self, busy: str) -> AbstractContextManager[None]:
        return locked_object(self._url, self._system, self._folder, busy)

    def _told(self, what: str) -> AbstractContextManager[None]:
        return told(self._url, f"cannot be {what}")

    def names(self) -> list[str]:
        from pyarrow import fs

        with self._told("read"):
            found = self._system.get_file_info(fs.FileSelector(self._folder, allow_not_found=True))
        return [info.base_name for info in found]

    def open(self, name: str) -> IO[bytes]:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        with self._told("read"), self._system.open_input_stream(f"{self._folder}/{name}", compression=None) as stream:
            shutil.copyfileobj(stream, file, 1 << 20)
        file.seek(0)
        return file

    def new(self) -> AbstractContextManager[IO[bytes]]:
        return tempfile.TemporaryFile()

    def keep(self, file: IO[bytes], name: str) -> None:
        file.seek(0)
        self._send(file, f"{self._folder}/{name}")

    def _send(self, file: IO[bytes], path: str) -> None:
        with self._told("written"):
            try:
                with self._system.open_output_stream(path, compression=None) as stream:
                    shutil.copyfileobj(file, stream, 1 << 20)
            except KeyboardInterrupt:  # closing the stream has made an object of what was sent
                self._delete(path)
                raise

    def remove(self, name: str) -> None:
        with self._told("written"):
            self._delete(f"{self._folder}/{name}")

    def _delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._system.delete_file(path)

    def remove_place(self) -> None:
        """A prefix goes with its objects, but some stores make one of its own for it; others refuse to remove what has gone."""
        from pyarrow import fs

        with self._told("written"), suppress(FileNotFoundError):
            if self._system.get_file_info(self._folder).type == fs.FileType.Directory:
                self._system.delete_dir(self._folder)

    def _size(self) -> int | None:
        with self._told("read"):
            return self._system.get_file_info(self._path).size  # type: ignore[no-any-return]

    def output_exists(self) -> bool:
        return self._size() is not None

    @contextmanager
    def new_output(self) -> Iterator[str]:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, os.path.basename(self._path))
            yield path
            with open(path, "rb") as file:
                self._send(file, self._path)

    def identity(self, path: str) -> list[Any]:
        with open(path, "rb") as file:
            return [os.path.getsize(path), hashlib.file_digest(file, "sha256").hexdigest()]

    def output_is(self, identity: list[Any]) -> bool:
        if self._size() != identity[0]:
            return False
        digest = hashlib.sha256()
        with self._told("read"), self._system.open_input_stream(self._path, compression=None) as stream:
            while data := stream.read(1 << 20):
                digest.update(data)
        return bool(digest.hexdigest() == identity[1])
