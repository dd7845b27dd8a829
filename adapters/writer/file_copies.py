"""Copies files and parts of them: by hard link, by reflink where the filesystem has it, else through one small buffer."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_cls.errors import ModelError

if TYPE_CHECKING:
    from io import FileIO

# One megabyte stays in the CPU's cache: measured faster than both larger buffers and copy_file_range on ext4.
BUFFER_SIZE = 1 << 20
BLOCK = 4096
"""Bytes that a reflink shares or copies as one; both ends must lie at the same place within a block."""

_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D
# What a filesystem (or an operating system) without reflinks answers, or one that cannot do it for these files.
_NO_CLONE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES}


def place_file(source: Path, target: Path, *, link: bool = False) -> None:
    """Make `target`, which must not exist, hold the bytes of `source`, with the usual file mode.

    Args:
        link: hard-link it where that is possible (same filesystem); it is then the same file.
    """
    if link:
        try:
            os.link(os.path.realpath(source), target)  # a hub cache holds symbolic links to its files
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
        else:
            return
    with open(source, "rb", buffering=0) as reader, open(target, "xb", buffering=0) as writer:
        if not _clone(writer, _FICLONE, reader.fileno()):
            copy_bytes(reader, writer, 0, os.fstat(reader.fileno()).st_size)


def can_clone(source: Path, folder: Path) -> bool:
    """Whether a file like `source` can be reflinked into `folder`."""
    probe = folder / ".reflink-probe"
    with open(source, "rb") as reader, open(probe, "xb", buffering=0) as writer:
        cloned = _clone(writer, _FICLONE, reader.fileno())
    probe.unlink()
    return cloned


def copy_range(reader: FileIO, writer: FileIO, start: int, nbytes: int) -> None:
    """Append `nbytes` of `reader`, from `start`, at the writer's position; whole blocks are reflinked if they can be.

    Raises:
        ModelError: the reader ends early.
    """
    position = writer.tell()
    if nbytes < BUFFER_SIZE or (start - position) % BLOCK:
        copy_bytes(reader, writer, start, nbytes)
        return
    lead = -start % BLOCK
    whole = (nbytes - lead) // BLOCK * BLOCK
    copy_bytes(reader, writer, start, lead)
    extent = struct.pack("qQQQ", reader.fileno(), start + lead, whole, position + lead)
    if _clone(writer, _FICLONERANGE, extent):
        writer.seek(position + lead + whole)
        copy_bytes(reader, writer, start + lead + whole, nbytes - lead - whole)
    else:
        copy_bytes(reader, writer, start + lead, nbytes - lead)


def copy_bytes(reader: FileIO, writer: FileIO, start: int, nbytes: int) -> None:
    """Append `nbytes` of `reader`, from `start`, at the writer's position."""
    for chunk in read_chunks(reader, start, nbytes):
        write_all(writer, chunk)


def read_chunks(reader: FileIO, start: int, nbytes: int) -> Iterator[memoryview]:
    """`nbytes` of a file from `start`, a buffer at a time; the same buffer each time, full except for the last.

    Raises:
        ModelError: the file ends early.
    """
    buffer = memoryview(bytearray(min(nbytes, BUFFER_SIZE)))
    reader.seek(start)
    while nbytes:
        size = min(nbytes, BUFFER_SIZE)
        filled = 0
        while filled < size:  # a raw file may give a part at a time
            count = reader.readinto(buffer[filled:size])
            if not count:
                raise ModelError(f"{reader.name} ends {nbytes - filled} bytes early; fetch the model again.")
            filled += count
        yield buffer[:size]
        nbytes -= size


def write_all(writer: FileIO, data: memoryview) -> None:
    """Write all of `data`; a raw file may take a part at a time."""
    while data:
        data = data[writer.write(data) :]


def _clone(writer: FileIO, request: int, argument: int | bytes) -> bool:
    """Ask the filesystem for a reflink; False where it has none."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return False
    try:
        fcntl.ioctl(writer.fileno(), request, argument)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True
