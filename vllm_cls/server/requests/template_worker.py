"""The process that renders chat templates of clients: a job a line in, an answer a line out, until its input ends.

Each job is done by a child, which is ended when it takes too long: what a template leaves behind ends with it, and the next one
does not wait until all is imported again. Run as `python -m vllm_cls.server.requests.template_worker` by `sandbox`.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

MEMORY = 1 << 30
"""Bytes that a template may use."""
MAX_TEXT = 1 << 22
"""Characters that it may write."""
NICENESS = 10
"""So much does it give way to the model."""


def main() -> None:
    """Answer jobs `{"seconds": …, "job": …}`; the first line out says that they may come."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    sys.stdout = sys.stderr  # whatever a library prints is no answer
    from transformers.utils.chat_template_utils import render_jinja_template

    bound_memory()
    os.nice(NICENESS)
    gc.freeze()
    answers.write(b"{}\n")
    answers.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answers.write(by_a_child(render_jinja_template, request["job"], request["seconds"]))
        answers.flush()


def by_a_child(render: Any, job: dict[str, Any], seconds: float) -> bytes:
    """The result of a job as a JSON line, computed in a forked child; `{"late": true}` after the time limit."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _do(render, job, writer)
    os.close(writer)
    until, line, whole = time.monotonic() + seconds, b"", False
    while not whole and select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(reader, 1 << 20)
        line, whole = line + part, not part
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    if not whole:
        return b'{"late": true}\n'
    return line if line.endswith(b"\n") else b'{"error": "it ended the process that rendered it."}\n'


def _do(render: Any, job: dict[str, Any], writer: int) -> NoReturn:
    try:
        for each in (0, 1, *range(3, writer)):  # where jobs and answers of others go
            with suppress(OSError):
                os.close(each)
        with os.fdopen(writer, "wb") as out:
            out.write(json.dumps(answer(render, job)).encode() + b"\n")
    finally:
        os._exit(0)


def answer(render: Any, job: dict[str, Any]) -> dict[str, str]:
    """The text that a template makes, or why there is none."""
    try:
        ((text,), _) = render(**job)
    except MemoryError:
        return {"error": "it takes too much memory."}
    except Exception as error:  # whatever a client's template can bring about
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    return {"text": text} if len(text) <= MAX_TEXT else {"error": f"it writes {len(text)} characters."}


def bound_memory() -> None:
    """Let allocations fail that would take more than this process has now and `MEMORY`."""
    import resource

    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[0]) if statm.exists() else 0
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
