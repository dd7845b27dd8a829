"""`OUT.parts`, the place beside OUT that holds what a job has finished until OUT is whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import IO, Any

from ...errors import JobError
from .fingerprints import differences, plain
from .lock import LOCK
from .stores import Store, store_of

_MANIFEST, _OUTPUT = "manifest.json", "output.json"
_PART = re.compile(r"part-(\d+)\.(\d+)\.([0-9a-f]{16})\.([0-9a-f]{16})\.jsonl")
_SHOWN = 5


@dataclass(frozen=True)
class Part:
    """A finished part, as its name tells it: a file that is whole, so there is nothing else to keep.

    Args:
        number: from 0.
        rows: how many results it holds, a line each.
        inputs: the hash of the rows that it was made of, 16 hexadecimal digits.
        results: the hash of its bytes, likewise.
    """

    number: int
    rows: int
    inputs: str
    results: str

    @property
    def name(self) -> str:
        return f"part-{self.number:06d}.{self.rows}.{self.inputs}.{self.results}.jsonl"


class WorkFolder:
    """What a job has finished.

    Args:
        store: where it is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parts: dict[int, Part] = {}
        self._outputs: list[Any] = []

    def load(self) -> None:
        """Find what an earlier run has left, and remove what it has not finished."""
        for name in self._store.names():
            if found := _PART.fullmatch(name):
                self._parts[int(found[1])] = Part(int(found[1]), int(found[2]), found[3], found[4])
        self._outputs = self._read(_OUTPUT) or []
        self.clean()

    def clean(self) -> None:
        """Remove what no finished part needs; all but the lock where there is none."""
        kept = {_MANIFEST, _OUTPUT, *(part.name for part in self._parts.values())} if self._parts else set()
        for name in self._store.names():
            if name not in kept | {LOCK}:
                self._store.remove(name)

    def remove(self) -> None:
        """Remove all of it; what knows the output for its own after the parts, and the lock last."""
        last = (_OUTPUT, _MANIFEST, LOCK)
        for name in self._store.names():
            if name not in last:
                self._store.remove(name)
        for name in last:
            self._store.remove(name)
        self._store.remove_place()

    def _read(self, name: str) -> Any:
        """What a JSON file holds; None where there is no file."""
        if name not in self._store.names():
            return None
        with self._store.open(name) as file:
            return json.load(file)

    def _write(self, name: str, value: Any) -> None:
        with self._store.new() as file:
            file.write(json.dumps(value, indent=1, ensure_ascii=False).encode())
            self._store.keep(file, name)

    def agree(self, **now: Any) -> None:
        """Note what the output depends on, or compare it with what an earlier run noted.

        Raises:
            JobError: it differs; the message says in what.
        """
        before, now = self._read(_MANIFEST) or {}, plain(now)
        changed = differences(
            {name: before[name] for name in now if name in before}, {n: now[n] for n in now if n in before}
        )
        if changed:
            told = "; ".join(changed[:_SHOWN]) + (f"; and {len(changed) - _SHOWN} more" if changed[_SHOWN:] else "")
            raise JobError(
                f"{self._store.output} was begun by another job, of which {self.rows:,} rows are kept, and this one "
                f"differs: {told}. --restart (restart=True) begins anew; or undo the change, or name another output."
            )
        self._write(_MANIFEST, {**before, **now})

    @property
    def rows(self) -> int:
        """The rows of the finished parts."""
        return sum(part.rows for part in list(self._parts.values()))  # while a thread keeps one

    @property
    def hint(self) -> str:
        """What to say when the job ends early; empty where nothing is kept."""
        rows, name = self.rows, self._store.name
        return f" {rows:,} finished rows are kept in {name}: the same command goes on from there." if rows else ""

    def part(self, index: int) -> tuple[Part, IO[bytes]] | None:
        """A finished part and its file, a line a row; None where there is none, or it is damaged."""
        part = self._parts.get(index)
        if part is None:
            return None
        file = self._store.open(part.name)
        if _hash_of(file) == (part.results, part.rows):
            file.seek(0)
            return part, file
        file.close()
        del self._parts[index]
        return None

    def __contains__(self, index: int) -> bool:
        """Whether a part is finished; `part` has found it whole."""
        return index in self._parts

    def new_part(self) -> AbstractContextManager[IO[bytes]]:
        """A file for a line a row, which is gone when the context ends, unless it was kept."""
        return self._store.new()

    def keep_part(self, index: int, file: IO[bytes], inputs: str) -> None:
        """Make a file of `new_part` a finished part.

        Args:
            inputs: the hash of the rows that it was made of, at least 16 hexadecimal digits.
        """
        file.seek(0)
        results, rows = _hash_of(file)
        part = Part(index, rows, inputs[:16], results)
        self._store.keep(file, part.name)
        self._parts[index] = part

    @contextmanager
    def new_output(self) -> Iterator[str]:
        """The path of a new file, which is the output when the context ends without an error."""
        with self._store.new_output() as path:
            yield path
            # so that a later run knows it for its own; one that is there may be, too
            self._write(_OUTPUT, [*self._outputs, self._store.identity(path)])

    @property
    def finished(self) -> bool:
        """Whether the output is there and of this job: the machine stopped before the parts were removed."""
        return any(map(self._store.output_is, self._outputs))


@contextmanager
def open_work_folder(
    output: str | os.PathLike[str], *, overwrite: bool = False, restart: bool = False
) -> Iterator[WorkFolder]:
    """The work folder of an output, held alone; it goes when the context ends without an error, or nothing is finished.

    Args:
        output: a path or a URL.
        overwrite: the output may be replaced.
        restart: forget what an earlier run has finished.

    Raises:
        JobError: another run is at work on this output, or the output is there.
    """
    store = store_of(output)
    with store.locked(f"another run is at work on {store.output}; wait for its end, or name another output."):
        work, done = WorkFolder(store), False
        try:
            if restart:
                work.clean()
            work.load()
            if store.output_exists() and not (overwrite or work.finished):
                raise JobError(f"the output {store.output} is there already; --overwrite (overwrite=True) replaces it.")
            yield work
            done = True
        finally:
            work.clean()
            if done or not work.rows:
                work.remove()


def _hash_of(file: IO[bytes]) -> tuple[str, int]:
    """The hash of a file, 16 digits, and how many lines it has."""
    digest, lines = hashlib.sha256(), 0
    for line in file:
        digest.update(line)
        lines += 1
    return digest.hexdigest()[:16], lines
