"""A lock of objects, which have none: an object that its run renews, and that counts for some minutes after it stopped."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ...errors import JobError
from ..formats.locations import told
from .lock import LOCK

RENEWED = 60.0  # seconds
DEAD = 300.0
"""Seconds after which a lock that nobody renewed counts no more."""

_held: set[str] = set()  # by this process


@contextmanager
def locked_object(url: str, system: Any, folder: str, busy: str) -> Iterator[None]:
    """Hold a prefix alone by the object `lock` below it.

    Two runs that begin in the same moment may both get it; the parts that they write are the same, byte for byte.

    Args:
        url: for messages.
        system: a pyarrow file system.
        folder: in it.
        busy: the message where another run holds it.

    Raises:
        JobError: it is held.
    """
    path = f"{folder}/{LOCK}"
    with told(url, "cannot be written"):
        holder = _holder(system, path)
        if holder is not None:
            raise JobError(
                f"{busy} It runs on {holder['host']} (process {holder['pid']}); if it died there, its lock ends by itself "
                f"in {DEAD / 60:.0f} minutes."
            )
        _write(system, path)
    _held.add(path)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(system, path, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        _held.discard(path)
        with told(url, "cannot be written"), suppress(FileNotFoundError):
            system.delete_file(path)


def _holder(system: Any, path: str) -> dict[str, Any] | None:
    """Who holds a lock; None where nobody does who is alive."""
    info = system.get_file_info(path)
    if info.size is None:
        return None
    with system.open_input_stream(path) as stream:
        holder: dict[str, Any] = json.loads(stream.read())
    if path in _held:
        return holder
    if time.time() - info.mtime.timestamp() > DEAD:
        return None
    return None if holder["host"] == socket.gethostname() and not _runs(holder["pid"]) else holder


def _runs(pid: int) -> bool:
    """Whether another process of this machine has that number."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write(system: Any, path: str) -> None:
    with system.open_output_stream(path, compression=None) as stream:
        stream.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())


def _renew(system: Any, path: str, ended: threading.Event) -> None:
    while not ended.wait(RENEWED):
        with suppress(OSError):  # the store is away; the next time comes
            _write(system, path)
