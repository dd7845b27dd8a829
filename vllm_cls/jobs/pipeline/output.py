"""The output of a job: under a temporary name, renamed at the end, so there is never half a file."""

from __future__ import annotations

import errno
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import JobError
from ..formats.files import OutputFile
from ..formats.locations import is_url
from ..formats.streams import reason
from ..formats.tables import OutputSchema
from ..formats.writers import JsonLines, Writer, open_writer
from ..resume.stores import store_of
from ..resume.work_folder import WorkFolder

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def open_output(target: OutputFile, layout: OutputSchema, work: WorkFolder | None = None) -> Iterator[Writer]:
    """A writer of `target`; the file is in its place when the context ends without an error.

    Args:
        work: where it is written until then, and what is kept if the context ends early; None is beside `target`.

    Raises:
        JobError: the file cannot be written.
    """
    if target.path is None:
        try:
            yield JsonLines(sys.stdout.buffer, flush=True)
        except OSError as error:
            if error.errno not in (errno.EPIPE, *_UNWRITABLE):  # not of the output
                raise
            ended = "its reader has ended before the rows did" if error.errno == errno.EPIPE else reason(error)
            raise JobError(f"standard output cannot be written: {ended}.") from error
        return
    try:
        with (work or store_of(target.path)).new_output() as path, open_writer(path, target, layout) as writer:
            yield writer
    except OSError as error:
        if error.errno not in _UNWRITABLE:  # not of the output
            raise
        made = f" (it is made in {tempfile.gettempdir()}, or TMPDIR, before it is sent)" if is_url(target.path) else ""
        raise JobError(f"{target.name} cannot be written{made}: {reason(error)}.{work.hint if work else ''}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted.{work.hint}" if work and work.hint else "interrupted") from None
