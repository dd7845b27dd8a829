"""`OUT.parts`, the folder beside OUT that holds what a job has finished until OUT is whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ...compat.disk import flush, flush_path, replacing
from ...errors import JobError
from .fingerprints import differences, plain
from .lock import LOCK, locked

_MANIFEST, _JOURNAL = "manifest.json", "journal.jsonl"
_SHOWN = 5


class WorkFolder:
    """What a job has finished, in files that are whole: a part counts once the journal says so and its hash fits.

    Args:
        output: the file that the job is to make.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = folder_of(output)
        self._parts: dict[int, dict[str, Any]] = {}
        self._outputs: list[list[int]] = []

    def load(self) -> None:
        """Read what an earlier run has left, and remove what it has not finished."""
        for entry in self._journal():
            if "part" in entry:
                self._parts[entry["part"]] = entry
            else:
                self._outputs.append(entry["output"])
        self.clean()

    def _journal(self) -> Iterator[dict[str, Any]]:
        file = self.path / _JOURNAL
        for line in file.read_bytes().splitlines() if file.is_file() else ():
            try:
                yield json.loads(line)
            except ValueError:  # empty, or torn when the machine stopped
                continue

    def _append(self, entry: dict[str, Any]) -> None:
        with open(self.path / _JOURNAL, "ab") as file:
            file.write(b"\n" + json.dumps(entry).encode() + b"\n")  # what is torn before it does not spoil it
            flush(file)
        flush_path(self.path)

    def clean(self) -> None:
        """Remove what no finished part needs; all but the lock where there is none."""
        kept = {_MANIFEST, _JOURNAL, *(_name(index) for index in self._parts)} if self._parts else set()
        for file in self.path.iterdir():
            if file.name not in kept | {LOCK}:
                file.unlink()

    def remove(self) -> None:
        """Remove all of it; the journal, which knows the output for its own, after the parts, and the lock last."""
        last = (_JOURNAL, _MANIFEST, LOCK)
        for file in self.path.iterdir():
            if file.name not in last:
                file.unlink()
        for name in last:
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):  # another run has it now
            self.path.rmdir()

    def agree(self, **now: Any) -> None:
        """Note what the output depends on, or compare it with what an earlier run noted.

        Raises:
            JobError: it differs; the message says in what.
        """
        file = self.path / _MANIFEST
        before = json.loads(file.read_bytes()) if file.is_file() else {}
        now = plain(now)
        changed = differences(
            {name: before[name] for name in now if name in before}, {n: now[n] for n in now if n in before}
        )
        if changed:
            told = "; ".join(changed[:_SHOWN]) + (f"; and {len(changed) - _SHOWN} more" if changed[_SHOWN:] else "")
            raise JobError(
                f"{self.output} was begun by another job, of which {self.rows:,} rows are kept, and this one differs: {told}. "
                "--restart (restart=True) begins anew; or undo the change, or name another output."
            )
        with replacing(file) as temporary:
            Path(temporary).write_text(json.dumps({**before, **now}, indent=1, ensure_ascii=False), encoding="utf-8")

    @property
    def rows(self) -> int:
        """The rows of the finished parts."""
        return sum(part["rows"] for part in self._parts.values())

    @property
    def hint(self) -> str:
        """What to say when the job ends early; empty where nothing is kept."""
        rows = self.rows
        return f" {rows:,} finished rows are kept in {self.path}: the same command goes on from there." if rows else ""

    def part(self, index: int) -> Path | None:
        """The file of a finished part, or None."""
        noted, file = self._parts.get(index), self.path / _name(index)
        if noted is None or not file.is_file():
            return None
        return file if (file.stat().st_size, _sha256(file)) == (noted["bytes"], noted["sha256"]) else None

    @contextmanager
    def new_part(self, index: int) -> Iterator[IO[bytes]]:
        """A file for a line a row, which is a finished part when the context ends without an error."""
        file, digest, rows = self.path / _name(index), hashlib.sha256(), 0
        with open(file.with_suffix(".tmp"), "w+b") as part:
            yield part
            flush(part)
            size = part.tell()
            part.seek(0)
            for line in part:
                digest.update(line)
                rows += 1
        os.replace(part.name, file)
        flush_path(self.path)
        entry = {"part": index, "rows": rows, "bytes": size, "sha256": digest.hexdigest()}
        self._append(entry)
        self._parts[index] = entry

    def finishing(self, path: str) -> None:
        """Note the file that is about to become the output, so that a later run knows it for its own."""
        self._append({"output": _identity(Path(path))})

    @property
    def finished(self) -> bool:
        """Whether the output is there and of this job: the machine stopped before the parts were removed."""
        return _identity(self.output) in self._outputs


@contextmanager
def open_work_folder(output: Path, *, overwrite: bool = False, restart: bool = False) -> Iterator[WorkFolder]:
    """The work folder of an output, held alone; it goes when the context ends without an error, or nothing is finished.

    Args:
        overwrite: the output may be replaced.
        restart: forget what an earlier run has finished.

    Raises:
        JobError: another run is at work on this output, or the output is there.
    """
    folder = folder_of(output)
    with locked(folder, f"another run is at work on {output}; wait for its end, or name another output."):
        work, done = WorkFolder(output), False
        try:
            if restart:
                work.clean()
            work.load()
            if output.exists() and not (overwrite or work.finished):
                raise JobError(f"the output {output} is there already; --overwrite (overwrite=True) replaces it.")
            yield work
            done = True
        finally:
            work.clean()
            if done or not work.rows:
                work.remove()


def folder_of(output: Path) -> Path:
    """Where the parts of an output are; beside the file that a link leads to."""
    return Path(os.path.realpath(output) + ".parts")


def _name(index: int) -> str:
    return f"part-{index:06d}.jsonl"


def _identity(file: Path) -> list[int]:
    """What a file keeps when it gets another name."""
    if not file.exists():
        return []
    found = file.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while data := opened.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()
