"""Chat templates of clients, rendered in a process of their own, which is ended when one takes too long.

Jinja's sandbox keeps a template from the interpreter, not from running for ever or filling the memory.
"""

from __future__ import annotations

import asyncio
import functools
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .errors import RequestError

SECONDS = 2.0
"""That a template may take."""
_STARTING_SECONDS = 120.0
_MEMORY = 1 << 30  # bytes that a template may use
_MAX_TEXT = 1 << 22  # characters that it may write


async def render(template: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
    """The text that a template makes of messages.

    Args:
        options: variables of the template, and options of transformers' `render_jinja_template`.

    Raises:
        RequestError: the template fails, or takes too much time or memory.
    """
    job = json.dumps({"chat_template": template, "conversations": [list(messages)], **options}).encode()
    answer = await asyncio.get_running_loop().run_in_executor(_thread(), _renderer().run, job)
    if "error" in answer:
        raise RequestError(f"The chat template fails: {answer['error']}", "chat_template")
    return str(answer["text"])


class _Renderer:
    """A process that renders one template after the other; a new one takes its place when it was ended."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Any = None

    def run(self, job: bytes) -> dict[str, Any]:
        """What the process makes of a job."""
        if self._process is None:
            self._start()
        try:
            self._pipe.send_bytes(job)
            if self._pipe.poll(SECONDS):
                answer: dict[str, Any] = json.loads(self._pipe.recv_bytes())
                return answer
            reason = f"it takes longer than {SECONDS:g} s."
        except (EOFError, OSError):
            reason = "it ended the process that rendered it."
        self._process.kill()
        self._process = None
        return {"error": reason}

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True, name="vcls-templates")
        self._process.start()
        theirs.close()
        if not self._pipe.poll(_STARTING_SECONDS):
            raise TimeoutError("the process that renders chat templates does not start")
        self._pipe.recv_bytes()


@functools.cache
def _renderer() -> _Renderer:
    return _Renderer()


@functools.cache
def _thread() -> ThreadPoolExecutor:
    """Where one template after the other is waited for."""
    return ThreadPoolExecutor(1, thread_name_prefix="vcls-templates")


def _work(pipe: Connection) -> None:
    """The process: jobs in, answers out, until the server is gone."""
    from transformers.utils.chat_template_utils import render_jinja_template

    _bound_memory()
    pipe.send_bytes(b"ready")
    while True:
        try:
            job = pipe.recv_bytes()
        except EOFError:
            return
        try:
            ((text,), _) = render_jinja_template(**json.loads(job))
            answer = {"text": text} if len(text) <= _MAX_TEXT else {"error": f"it writes {len(text)} characters."}
        except MemoryError:
            answer = {"error": "it takes too much memory."}
        except Exception as error:  # whatever a template of a client's can bring about
            answer = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        pipe.send_bytes(json.dumps(answer).encode())


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limit = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
