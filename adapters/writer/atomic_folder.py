"""Writes a folder atomically: under a temporary name beside its destination, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from vllm_cls.compat.disk import flush_path
from vllm_cls.errors import ModelError


def checked_place(out: Path, sources: Iterable[Path], *, overwrite: bool) -> Path:
    """The resolved path of `out`, after checking that writing there destroys nothing.

    Args:
        sources: the folder and files that are read.
        overwrite: whether a checkpoint at `out` may be replaced.

    Raises:
        ModelError: something is there already, or a source is there, above or below it.
    """
    place = Path(os.path.realpath(out.expanduser()))
    for source in sources:
        real = Path(os.path.realpath(source))
        if place == real or place in real.parents or real in place.parents:
            raise ModelError(f"{out} lies in or around the model that is read ({source}); choose another folder.")
    if not os.path.lexists(place):
        return place
    if not place.is_dir():
        raise ModelError(f"{out} exists and is a file; choose another name.")
    if not overwrite:
        raise ModelError(f"{out} exists; choose another folder, or pass --overwrite to replace it.")
    if any(place.iterdir()) and not (place / "config.json").is_file():
        raise ModelError(f"{out} is not empty and holds no model (no config.json), so it is not overwritten.")
    return place


@contextlib.contextmanager
def new_folder(place: Path, *, overwrite: bool) -> Iterator[Path]:
    """A context with a temporary folder to fill, which is renamed to `place` on success and removed on errors.

    A process that is killed leaves the temporary folder (`.NAME.tmp-PID-…`) and never half of `place`.

    Raises:
        ModelError: `place` was created meanwhile.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    suffix = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = place.with_name(f".{place.name}.tmp-{suffix}")
    temporary.mkdir()  # not tempfile's: its folders are closed to everyone else
    try:
        yield temporary
        _flush(temporary)
        _move(temporary, place, place.with_name(f".{place.name}.old-{suffix}"), overwrite)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush_path(place.parent)


def _move(temporary: Path, place: Path, old: Path, overwrite: bool) -> None:
    if not os.path.lexists(place):
        temporary.rename(place)
        return
    if not overwrite:
        raise ModelError(f"{place} was made by something else meanwhile; choose another folder.")
    place.rename(old)
    try:
        temporary.rename(place)
    except BaseException:
        old.rename(place)
        raise
    shutil.rmtree(old)


def _flush(folder: Path) -> None:
    """Wait until all that is below `folder` is on the disk."""
    for path in folder.rglob("*"):
        flush_path(path)
    flush_path(folder)
