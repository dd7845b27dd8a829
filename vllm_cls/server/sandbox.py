"""Chat templates of clients, rendered in a process of their own, which is ended when one takes too long.

Jinja's sandbox keeps a template from the interpreter, not from running for ever or filling the memory.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import select
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..startup import command_of
from .errors import RequestError

SECONDS = 2.0
"""That a template may take."""
_STARTING_SECONDS = 120.0
_WORKER = command_of("vllm_cls.server.template_worker")


async def render(template: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
    """The text that a template makes of messages.

    Args:
        options: variables of the template, and options of transformers' `render_jinja_template`.

    Raises:
        RequestError: the template fails, or takes too much time or memory.
    """
    job = json.dumps({**options, "chat_template": template, "conversations": [list(messages)]})
    answer = await asyncio.get_running_loop().run_in_executor(_thread(), _renderer().run, job)
    if "error" in answer:
        raise RequestError(f"The chat template fails: {answer['error']}", "chat_template")
    return str(answer["text"])


class _Renderer:
    """A process that renders one template after the other; a new one takes its place when it was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, job: str) -> dict[str, Any]:
        """What the process makes of a job."""
        if self._process is None:
            self._process = self._started()
        answer = self._ask(self._process, job)
        if answer is None:
            self.close()
            answer = {"error": f"it takes longer than {SECONDS:g} s, or ended the process that rendered it."}
        return answer

    def _started(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            _WORKER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
        )
        if self._line(process, _STARTING_SECONDS) is None:
            process.kill()
            process.communicate()
            raise RuntimeError("the process that renders chat templates does not start")
        return process

    def _ask(self, process: subprocess.Popen[str], job: str) -> dict[str, Any] | None:
        assert process.stdin is not None
        try:
            print(job, file=process.stdin, flush=True)
        except BrokenPipeError:
            return None
        return self._line(process, SECONDS)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    @staticmethod
    def _line(process: subprocess.Popen[str], seconds: float) -> dict[str, Any] | None:
        """The next answer, or None where none comes in time."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        line = process.stdout.readline() if ready else ""
        return dict(json.loads(line)) if line else None


@functools.cache
def _renderer() -> _Renderer:
    renderer = _Renderer()
    atexit.register(renderer.close)
    return renderer


@functools.cache
def _thread() -> ThreadPoolExecutor:
    """Where one template after the other is waited for."""
    return ThreadPoolExecutor(1, thread_name_prefix="vcls-templates")
