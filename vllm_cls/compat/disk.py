"""Waiting for the disk, on systems that allow it."""

from __future__ import annotations

import os


def flush_path(path: os.PathLike[str] | str) -> None:
    """Wait until a file's content, or the names of a folder's files, are on the disk."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
