"""Rank 0, in the caller's process, and what became of the processes that it started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from ...errors import ConfigError, EngineDeadError, ModelError
from . import group, ranks


@dataclass
class _Fate:
    """What became of the processes that a leader started; shared with the threads that watch them."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    reason: str | None = None
    is_ended: threading.Event = field(default_factory=threading.Event)

    def decide(self, reason: str) -> None:
        """From here on they may end; the first reason stays."""
        self.reason = self.reason or reason
        self.is_ended.set()

    def end(self, reason: str) -> None:
        """Kill them all."""
        self.decide(reason)
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        group.abort()

    def why(self, otherwise: str) -> str:
        """Why they ended; a pipe is closed a moment before its process is seen to have ended."""
        self.is_ended.wait(1.0)
        return self.reason or otherwise

    def watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if self.reason is None:
            self.end(f"rank {rank} (process {process.pid}) ended by itself, {_how(code)}")


class Leader:
    """Rank 0, in the caller's process: starts the others, and ends them.

    Args:
        size: ranks in all.
        module: run by each of the others, as `python -m`; it begins with `Follower(sys.argv)`.
        task: what they are told at first.
        backend: of torch.distributed, "gloo" or "nccl"; None where forwards exchange nothing.

    Raises:
        ConfigError: this process uses torch.distributed for something else.
        ModelError: a process did not start.
    """

    rank = 0

    def __init__(self, size: int, module: str, task: Mapping[str, Any], backend: str | None) -> None:
        if backend is not None and group.is_used():
            raise ConfigError(
                "this process uses torch.distributed already (by another LLM of several processes, or by its own program); "
                "close that first, or open this model in a process of its own."
            )
        self.size = size
        self._folder = tempfile.mkdtemp(prefix="vllm_cls_ranks_")
        self._pipes: list[Connection] = []
        self._fate = _Fate()
        self._finalizer = weakref.finalize(self, _close, self._fate, self._pipes, self._folder)
        try:
            for rank in range(1, size):
                self._start(rank, module)
            meeting: dict[str, Any] = {
                "rendezvous": str(Path(self._folder) / "store"),
                "backend": backend,
                "size": size,
            }
            for rank, pipe in enumerate(self._pipes, 1):
                pipe.send({**meeting, "rank": rank, "task": task})
            self.hear("met", ranks.START_SECONDS)  # once they have imported what takes seconds
            if backend is not None:
                group.join(**meeting, rank=0, timeout=timedelta(seconds=ranks.FORWARD_SECONDS))
        except BaseException:
            self.end("it did not start")
            self._finalizer()
            raise

    def _start(self, rank: int, module: str) -> None:
        ours, theirs = Pipe()
        self._pipes.append(ours)
        # As this process finds modules, and nothing else: no folder where it happens to run.
        path = os.pathsep.join(each for each in sys.path if each)
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", module, str(theirs.fileno())]
        process = subprocess.Popen(
            command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        theirs.close()
        self._fate.processes.append(process)
        threading.Thread(
            target=self._fate.watch, args=(rank, process), name=f"vllm_cls_rank_{rank}", daemon=True
        ).start()

    def hear(self, what: str, seconds: float = ranks.FORWARD_SECONDS) -> list[Any]:
        """Wait until every rank has said this, and what it said of it.

        Raises:
            ModelError: one said that it failed, or ended.
        """
        heard = []
        for rank, pipe in enumerate(self._pipes, 1):
            word, value = _received(pipe, seconds)
            if word != what:
                raise ModelError(f"rank {rank} of {self.size}: {value or self._fate.why(f'no answer in {seconds} s')}")
            heard.append(value)
        return heard

    def explain(self, failure: Exception) -> Exception:
        """What made the model not load: the failure itself, or another rank's, of which it is a consequence."""
        for rank, pipe in enumerate(self._pipes, 1):
            word, value = _received(pipe, ranks.END_SECONDS)
            if word == "failed" and value != str(failure):
                return ModelError(f"rank {rank} of {self.size}: {value}")
            if word is None:
                return ModelError(f"the model was not loaded: {self._fate.why(f'rank {rank} gives no answer')}.")
        return failure

    def announce(self, name: str, *arguments: Any) -> None:
        """As of `Ranks`.

        Raises:
            EngineDeadError: a rank has ended.
        """
        if self._fate.reason is not None:
            self._dead()
        try:
            for pipe in self._pipes:
                pipe.send((name, arguments))
        except OSError:
            self.end(self._fate.why("a rank does not listen"))
            self._dead()

    def share(self, name: str, parts: Sequence[Sequence[Any]]) -> None:
        """Have each rank begin a call on its own part; those without one rest.

        Raises:
            EngineDeadError: a rank has ended.
        """
        if self._fate.reason is not None:
            self._dead()
        try:
            for pipe, part in zip(self._pipes, parts[1:], strict=True):
                if part:
                    pipe.send((name, (part,)))
        except OSError:
            self.end(self._fate.why("a rank does not listen"))
            self._dead()

    def answers(self, asked: Sequence[bool]) -> list[Any]:
        """What the ranks behind the first answer; None of those that were not asked.

        Raises:
            EngineDeadError: a rank has ended, or says nothing.
        """
        found = []
        for pipe, is_asked in zip(self._pipes, asked[1:], strict=True):
            word, value = _received(pipe, ranks.FORWARD_SECONDS) if is_asked else ("answers", None)
            if word != "answers":
                self.end(self._fate.why("a rank gives no answer"))
                self._dead()
            found.append(value)
        return found

    def agree(self, failure: Exception, *, exhausted: bool) -> None:
        """As of `Ranks`."""
        answers = [_received(pipe, ranks.AGREEMENT_SECONDS) for pipe in self._pipes]
        if answers == [("failed", exhausted)] * len(answers):
            self.announce("go on")
            return
        if any(word is None for word, _ in answers):
            self._fate.why("")
        lines = str(failure).strip().splitlines() or [type(failure).__name__]
        self.end(f"a forward failed on rank 0 and not on all others ({lines[0][:200]})")
        self._dead()

    def _dead(self) -> NoReturn:
        raise EngineDeadError(f"the model's processes have ended: {self._fate.reason}; open the model again.")

    def end(self, reason: str) -> None:
        """As of `Ranks`."""
        self._fate.end(reason)

    def close(self) -> None:
        """End all ranks, once what runs is done."""
        self._finalizer()


def _received(pipe: Connection, seconds: float) -> tuple[str | None, Any]:
    """What comes within a time; None where a process has ended, or says nothing."""
    try:
        if pipe.poll(seconds):
            word, value = pipe.recv()
            return word, value
    except (EOFError, OSError):
        pass
    return None, None


def _close(fate: _Fate, pipes: Sequence[Connection], folder: str) -> None:
    fate.decide("the model was closed")
    for pipe in pipes:
        pipe.close()
    for process in fate.processes:
        try:
            process.wait(ranks.END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    group.leave()
    shutil.rmtree(folder, ignore_errors=True)


def _how(code: int) -> str:
    """How a process ended, for people."""
    if code >= 0:
        return f"with exit code {code}"
    hint = "; it may have run out of memory" if -code == signal.SIGKILL else ""
    return f"by signal {-code} ({signal.Signals(-code).name}{hint})"
