"""Renders clients' chat templates in subprocesses, which are killed when a template takes too long.

Jinja's sandbox keeps a template from the interpreter, not from running for ever or filling the memory.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import select
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ...compat.lazy_imports import command_of
from ...errors import QueueFullError
from ..errors import RequestError

QUICK = 0.2
"""Seconds that each template has at once; one that takes longer begins anew behind all others, with `SECONDS`."""
SECONDS = 2.0
"""That a template may take."""
MOST = 16
"""Templates of one client that may wait."""
_STARTING_SECONDS, _GRACE = 120.0, 10.0
_WORKER = command_of("vllm_cls.server.requests.template_worker")


def prepare() -> None:
    """Have the processes that render templates start now, not when the first one comes."""
    _renderers()


async def render(template: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], client: str) -> str:
    """The text that a template makes of messages.

    Args:
        options: variables of the template, and options of transformers' `render_jinja_template`.
        client: who asks; clients take turns.

    Raises:
        RequestError: the template fails, or takes too much time or memory.
        QueueFullError: too many of this client's wait.
    """
    work = {**options, "chat_template": template, "conversations": [list(messages)]}
    answer = await asyncio.wrap_future(_renderers().submit(client, work))
    if "error" in answer:
        raise RequestError(f"The chat template fails: {answer['error']}", "chat_template")
    return str(answer["text"])


@dataclass(eq=False)
class _Job:
    client: str
    work: Mapping[str, Any]
    seconds: float = QUICK
    answer: Future[dict[str, Any]] = field(default_factory=Future)


class _Lane:
    """A queue of jobs, round robin by client, so that a client with many jobs delays only itself."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[_Job]] = {}

    def put(self, job: _Job) -> None:
        self._waiting.setdefault(job.client, deque()).append(job)

    def count(self, client: str) -> int:
        return sum(not job.answer.cancelled() for job in self._waiting.get(client, ()))

    def take(self) -> _Job | None:
        """The next job, or None; cancelled jobs are dropped."""
        while self._waiting:
            client = next(iter(self._waiting))
            jobs = self._waiting.pop(client)
            job = jobs.popleft()
            if jobs:
                self._waiting[client] = jobs  # at the end
            if not job.answer.cancelled():
                return job
        return None


class _Renderers:
    """Two threads with a process each: one for quick templates, one for quick and slow ones."""

    def __init__(self) -> None:
        self._quick, self._slow = _Lane(), _Lane()
        self._changed = threading.Condition()
        for lanes in ((self._quick,), (self._quick, self._slow)):
            threading.Thread(target=self._work, args=(lanes,), name="vcls-templates", daemon=True).start()
            self.submit("", {"chat_template": "", "conversations": [[]]})  # which starts its process

    def submit(self, client: str, work: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """What becomes of a job; raises as `render`."""
        job = _Job(client, work)
        with self._changed:
            if self._quick.count(client) + self._slow.count(client) >= MOST:
                raise QueueFullError(f"{MOST} chat templates of yours wait already; try again.", SECONDS)
        self._put(self._quick, job)
        return job.answer

    def _put(self, lane: _Lane, job: _Job) -> None:
        with self._changed:
            lane.put(job)
            self._changed.notify_all()

    def _next(self, lanes: Sequence[_Lane]) -> _Job:
        with self._changed:
            while True:
                for lane in lanes:
                    if job := lane.take():
                        return job
                self._changed.wait()

    def _work(self, lanes: Sequence[_Lane]) -> None:
        renderer = _Renderer()
        atexit.register(renderer.close)
        while True:
            job = self._next(lanes)
            with suppress(InvalidStateError):  # nobody waits for it any more
                try:
                    answer = renderer.run(job.work, job.seconds)
                except Exception as error:  # whatever it is belongs to whoever waits
                    job.answer.set_exception(error)
                    continue
                if "late" not in answer:
                    job.answer.set_result(answer)
                elif job.seconds < SECONDS:
                    job.seconds = SECONDS
                    self._put(self._slow, job)
                else:
                    job.answer.set_result({"error": f"it takes longer than {SECONDS:g} s."})


class _Renderer:
    """A process that renders one template after the other; a new one takes its place when it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, work: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """What the process makes of a job; `{"late": true}` where it takes longer."""
        if self._process is None:
            self._process = self._started()
        answer = self._ask(self._process, json.dumps({"seconds": seconds, "job": work}), seconds + _GRACE)
        if answer is None:
            self.close()
            answer = {"error": "it ended the process that rendered it."}
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

    def _ask(self, process: subprocess.Popen[str], job: str, seconds: float) -> dict[str, Any] | None:
        assert process.stdin is not None
        try:
            print(job, file=process.stdin, flush=True)
        except BrokenPipeError:
            return None
        return self._line(process, seconds)

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
def _renderers() -> _Renderers:
    return _Renderers()
