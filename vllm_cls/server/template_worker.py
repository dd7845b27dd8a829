"""The process that renders chat templates of clients: a job a line in, an answer a line out, until its input ends.

Run as `python -m vllm_cls.server.template_worker` by `sandbox`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

MEMORY = 1 << 30
"""Bytes that a template may use."""
MAX_TEXT = 1 << 22
"""Characters that it may write."""


def main() -> None:
    """Answer jobs; the first line out says that they may come."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    sys.stdout = sys.stderr  # whatever a library prints is no answer
    from transformers.utils.chat_template_utils import render_jinja_template

    bound_memory()
    print("{}", file=answers, flush=True)
    for line in sys.stdin.buffer:
        print(json.dumps(answer(render_jinja_template, json.loads(line))), file=answers, flush=True)


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
    try:
        import resource
    except ImportError:  # not on Windows
        return
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[0]) if statm.exists() else 0
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
