"""A lock on a folder, which ends with the process that holds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import JobError

LOCK = "lock"


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Make a folder, and hold it alone by the file `lock` in it.

    Args:
        folder: the holder may remove it, its lock last.
        busy: the message where another process or thread holds it.

    Raises:
        JobError: it is held.
    """
    import fcntl  # not on Windows

    while True:
        folder.mkdir(exist_ok=True)
        try:
            held = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # its holder has just removed it
            continue
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JobError(busy) from None
            if _is_still(folder / LOCK, held):
                yield
                return
        finally:
            os.close(held)


def _is_still(file: Path, opened: int) -> bool:
    """Whether an open file has its name yet."""
    return file.exists() and os.path.samestat(os.stat(file), os.fstat(opened))
