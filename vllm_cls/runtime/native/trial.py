"""Which of several ways to compute the same is the fastest on this processor: tried once, and remembered on disk."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ...compat.disk import cache_folder, locked, replacing
from .compiler import processor, sources

_TURNS = 8  # the first of which warms up
# So much faster has one to be than those before it: what lies between is chance, and should choose the same each time.
_MARGIN = 1.03


def fastest(what: str, candidates: Mapping[str, Callable[[], object]]) -> str:
    """The name of the fastest candidate, by the least time of this thread in a few turns; earlier ones are preferred.

    Args:
        what: is computed; the same text has the same answer from then on, in other processes too; where that cannot be, the
            first candidate.
        candidates: by name, the preferred ones first; each computes it once, on one thread.
    """
    if len(candidates) == 1:
        return next(iter(candidates))
    file, what = _file(), f"{what}: {', '.join(candidates)}"
    kept = _read(file).get(what)
    if isinstance(kept, str) and kept in candidates:
        return kept
    try:
        return next(iter(candidates)) if file is None else _tried_once(file, what, candidates)
    except OSError:
        # What cannot be remembered is not tried: another choice the next time would change the last digits of a job
        # that goes on.
        return next(iter(candidates))


def _tried_once(file: Path, what: str, candidates: Mapping[str, Callable[[], object]]) -> str:
    """The answer of this process, or of another one that tried it at the same time.

    Raises:
        OSError: it cannot be kept for processes to come.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(file.with_suffix(".lock")):
        known = _read(file)
        kept = known.get(what)
        if isinstance(kept, str) and kept in candidates:
            return kept
        name = next((line for line in processor() if line.startswith("model name")), "")
        chosen = _tried(candidates)
        content = {"processor": name.partition(":")[2].strip(), "fastest": {**known, what: chosen}}
        with replacing(file) as whole:
            Path(whole).write_text(json.dumps(content, indent=1), encoding="utf-8")
        return chosen


def _tried(candidates: Mapping[str, Callable[[], object]]) -> str:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = dict.fromkeys(candidates, float("inf"))
        for _ in range(_TURNS):
            for name, compute in candidates.items():
                began = time.thread_time()  # what else the machine does is not in it
                compute()
                seconds[name] = min(seconds[name], time.thread_time() - began)
    finally:
        torch.set_num_threads(before)
    chosen, *others = candidates
    for name in others:
        if seconds[name] * _MARGIN < seconds[chosen]:
            chosen = name
    return chosen


def _file() -> Path | None:
    """Where answers are kept: its name stands for the processor, what torch uses of it, its version and our C."""
    try:
        here = processor()
        if not here:  # the file would be that of any processor
            return None
        parts = [
            *here,
            torch.backends.cpu.get_cpu_capability(),
            torch.__version__,
            *sources("product", "int8_product"),
        ]
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return cache_folder() / "native" / f"fastest-{digest[:32]}.json"
    except (OSError, RuntimeError):
        return None


def _read(file: Path | None) -> dict[str, object]:
    try:  # where others may write too, a pipe would be waited for
        kept = json.loads(file.read_text(encoding="utf-8"))["fastest"] if file is not None and file.is_file() else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}
