"""What transformers reads in the sources of all its models whenever it is imported, kept for the next process.

It parses 2,500 files to learn which class is where: a quarter of a second, and far more while none of them is in memory.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import marshal
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .disk import cache_folder, keep, read_kept

_PARSER = "create_import_structure_from_path"


def keep_structure(import_utils: ModuleType) -> None:
    """Let `transformers.utils.import_utils` parse each source once a process, and those of its models once an installation."""
    parse = getattr(getattr(import_utils, _PARSER, None), "__wrapped__", None)
    if parse is None:  # another transformers
        return
    models = Path(str(import_utils.__file__)).parents[1] / "models"

    @functools.cache
    def structure(folder: str) -> Any:
        return _kept_structure(parse, models) if folder == str(models) else parse(folder)

    def of_path(module_path: str | os.PathLike[str]) -> Any:
        path = os.fspath(module_path)
        return structure(os.path.dirname(path) if os.path.isfile(path) else path)

    # The parser calls itself by this name, for each folder within.
    setattr(import_utils, _PARSER, of_path)


def _kept_structure(parse: Callable[[str], Any], models: Path) -> Any:
    """What the parser makes of the models' sources: from the cache folder, where these very files were parsed before."""
    try:
        file = cache_folder() / "transformers" / f"models-{_digest(models)}"
    except (OSError, RuntimeError):
        return parse(str(models))
    content = read_kept(file)
    if content is not None:
        return marshal.loads(content)
    found = parse(str(models))
    with contextlib.suppress(ValueError):  # it holds objects of another kind
        keep(marshal.dumps(found), file)
    return found


def _digest(models: Path) -> str:
    """Of all that the structure depends on: the parser, each source by its name, size and time, and Python's own format."""
    parts = [sys.version, *_stamps(models.parent / "utils", "import_utils.py"), *_stamps(models)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _stamps(folder: str | os.PathLike[str], only: str | None = None) -> list[str]:
    """Name, size and time of the files in a folder and those within it, in their order."""
    stamps: list[str] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            if entry.name == "__pycache__" or (only or entry.name) != entry.name:
                continue
            if entry.is_dir():
                stamps += _stamps(entry.path)
            else:
                found = entry.stat()
                stamps.append(f"{entry.path} {found.st_size} {found.st_mtime_ns}")
    return stamps
