"""The cache folder; files that are whole or not there at all; waiting for the disk, on systems that allow it."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def cache_folder() -> Path:
    """Where files are that can be made again: `$VLLM_CLS_CACHE`, else `$XDG_CACHE_HOME/vllm_cls`, else `~/.cache/vllm_cls`.

    Raises:
        RuntimeError: nobody's home is known.
    """
    own = os.environ.get("VLLM_CLS_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm_cls"


@contextmanager
def locked(path: os.PathLike[str] | str) -> Iterator[None]:
    """Hold a file that processes of this machine take in turn; it is made, and stays. Elsewhere than on POSIX none waits.

    Raises:
        OSError: it cannot be made, or the file system has no locks.
    """
    with open(path, "ab") as held:
        if os.name == "posix":
            import fcntl

            fcntl.flock(held, fcntl.LOCK_EX)  # let go of when it is closed
        yield


def flush_path(path: os.PathLike[str] | str) -> None:
    """Wait until a file's content, or the names of a folder's files, are on the disk."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: os.PathLike[str] | str, folder: os.PathLike[str] | str | None = None) -> Iterator[str]:
    """The name of a new file, which takes the place of `path` at the end; after an error it is removed.

    Args:
        folder: where it is until then, in the same file system; None is beside `path`.
    """
    target = os.path.realpath(path)  # a link stays a link
    beside, name = os.path.split(target)
    temporary = os.path.join(folder or beside, f".tmp-{os.urandom(4).hex()}-{name}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with open(temporary, "r+b") as written:
            flush(written)
        if os.path.exists(target):
            os.chmod(temporary, os.stat(target).st_mode & 0o777)
        os.replace(temporary, target)
        flush_path(beside)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def flush(file: IO[bytes]) -> None:
    """Wait until what was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def _digest(content: bytes, file: Path) -> bytes:
    """What stands behind the content: that it is whole, and what this name stands for."""
    return hashlib.sha256(file.name.encode() + content).digest()


def read_kept(file: Path) -> bytes | None:
    """What `keep` has put there; None unless it is whole, and this user's, and nobody else may change it."""
    if os.name != "posix":  # whose it is cannot be told
        return None
    try:
        # Neither what a link points to nor a pipe that would be waited for.
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, "rb") as opened:
        found = os.fstat(descriptor)
        others = stat.S_IWGRP | stat.S_IWOTH
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & others:
            return None
        whole = opened.read()
    content, digest = whole[:-32], whole[-32:]
    return content if _digest(content, file) == digest else None


def keep(content: bytes, file: Path) -> None:
    """Keep a file for processes to come, where there is room for it; it appears whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=".", dir=file.parent, ignore_cleanup_errors=True) as folder:
            whole = Path(folder, file.name)
            whole.touch(mode=0o600)
            whole.write_bytes(content + _digest(content, file))
            whole.replace(file)
    except OSError:
        return
