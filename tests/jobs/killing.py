"""Runs jobs in processes of their own and kills them; libraries are imported once, and each job is a fork.

    python -m tests.jobs.killing MODEL INPUT KILLS SEED OUT...

Each OUT is made once without a kill. Then its job is killed KILLS times at a random moment, and a third as often at a random
step towards the disk, each time taken up again, and then ended. A line of JSON for each OUT says how many were killed, how often
what was whole differed from the first, and what was left beside it. MODEL "fake" is tests/jobs/fake.py.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401 - here, not in each fork

from tests.jobs.fake import FakeLLM
from vllm_cls import classify_file
from vllm_cls.compat.lazy_imports import import_libraries
from vllm_cls.jobs.resume import parts

parts.PART_ROWS = 16
_STEPS = ("fsync", "replace", "unlink", "rmdir", "mkdir")
_STEPS_OF_A_JOB = 40


def opened(model: str) -> Any:
    if model == "fake":
        return FakeLLM(window=8)
    from vllm_cls import LLM

    return LLM(model, num_threads=1)


def forked(job: Callable[[], Any], meanwhile: Callable[[int], Any]) -> bool:
    """Run a job in a process of its own; whether it was killed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            job()
            code = 0
        finally:
            os._exit(code)
    meanwhile(child)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def be_killed_at(number: int) -> None:
    """Let this process be killed right before the step of that number."""
    left = number

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **options)

        return run

    for name in _STEPS:
        setattr(os, name, counted(getattr(os, name)))


def killed_and_taken_up(model: str, source: str, kills: int, chance: random.Random, out: Path) -> dict[str, Any]:
    ready, loaded = os.pipe()

    def job(step: int | None = None) -> None:
        with opened(model) as llm:
            os.write(loaded, b".")
            if step is not None:
                be_killed_at(step)
            classify_file(llm, source, out)

    began = seconds = 0.0

    def wait(child: int) -> None:
        nonlocal began
        os.read(ready, 1)
        began = time.perf_counter()

    def kill(child: int) -> None:
        wait(child)
        time.sleep(chance.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)

    forked(job, wait)
    seconds = time.perf_counter() - began
    clean = out.read_bytes()
    out.unlink()
    found = {"killed": 0, "finished": 0, "differed": 0}

    def check() -> None:
        found["finished"] += 1
        found["differed"] += out.read_bytes() != clean
        out.unlink()

    while found["killed"] < kills + kills // 3:
        if found["killed"] < kills:
            killed = forked(job, kill)
        else:
            killed = forked(functools.partial(job, chance.randint(1, _STEPS_OF_A_JOB)), wait)
        found["killed"] += killed
        if out.exists() and not Path(f"{out}.parts", "output.json").exists():  # it was at its end, killed or not
            check()
    forked(job, wait)
    check()
    return {**found, "seconds": seconds, "left": sorted(os.listdir(out.parent))}


def main(model: str, source: str, kills: str, seed: str, *outputs: str) -> None:
    chance = random.Random(int(seed))
    if model != "fake":
        import_libraries()
    for out in outputs:
        print(json.dumps(killed_and_taken_up(model, source, int(kills), chance, Path(out))))


if __name__ == "__main__":
    main(*sys.argv[1:])
