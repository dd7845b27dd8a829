"""Rank 0, in the caller's process, and what became of the processes that it started."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from ...errors import ConfigError, EngineDeadError, ModelError
from . import group, ranks
from .process import RankProcess


@dataclass
class _Fate:
    """What became of the processes that a leader started; shared with the threads that watch them.

    Args:
        is_common: when one ends, all do.
    """

    processes: list[RankProcess] = field(default_factory=list)
    is_common: bool = True
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
            process.kill()
        group.abort()

    def why(self, otherwise: str) -> str:
        """Why they ended; a pipe is closed a moment before its process is seen to have ended."""
        self.is_ended.wait(1.0)
        return self.reason or otherwise

    def watch(self, process: RankProcess) -> None:
        told = process.ended()
        if self.is_common and self.reason is None:
            self.end(told)


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
        self._fate = _Fate()
        self._others = self._fate.processes
        place = contextlib.nullcontext(group.NOWHERE) if backend is None else group.meeting_place()
        self._closing = contextlib.ExitStack()
        self._finalizer = weakref.finalize(self, _close, self._fate, self._closing)
        where = self._closing.enter_context(place)
        meeting: dict[str, Any] = {"rendezvous": where.path, "backend": backend, "size": size}
        self._module, self._files, self._first = module, where.files, {**meeting, "task": task}
        try:
            for rank in range(1, size):
                self._others.append(self._started(rank))
                threading.Thread(
                    target=self._fate.watch, args=(self._others[-1],), name=f"vllm_cls_rank_{rank}", daemon=True
                ).start()
            self.hear("met", ranks.START_SECONDS)  # once they have imported what takes seconds
            if backend is not None:
                group.join(**meeting, rank=0, timeout=timedelta(seconds=ranks.FORWARD_SECONDS))
        except BaseException:
            self.end("it did not start")
            self._finalizer()
            raise

    def _started(self, rank: int) -> RankProcess:
        process = RankProcess(rank, self._module, self._files)
        process.tell({**self._first, "rank": rank})
        return process

    def hear(self, what: str, seconds: float = ranks.FORWARD_SECONDS) -> list[Any]:
        """Wait until every rank has said this, and what it said of it.

        Raises:
            ModelError: one said that it failed, or ended.
        """
        heard = []
        for each in self._others:
            word, value = each.hear(seconds)
            if word != what:
                why = value or self._fate.why(f"no answer in {seconds} s")
                raise ModelError(f"rank {each.rank} of {self.size}: {why}")
            heard.append(value)
        return heard

    def explain(self, failure: Exception) -> Exception:
        """What made the model not load: the failure itself, or another rank's, of which it is a consequence."""
        for each in self._others:
            word, value = each.hear(ranks.END_SECONDS)
            if word == "failed" and value != str(failure):
                return ModelError(f"rank {each.rank} of {self.size}: {value}")
            if word is None:
                return ModelError(f"the model was not loaded: {self._fate.why(f'rank {each.rank} gives no answer')}.")
        return failure

    def announce(self, name: str, *arguments: Any) -> None:
        """As of `Ranks`.

        Raises:
            EngineDeadError: a rank has ended.
        """
        self._check()
        try:
            for each in self._others:
                each.tell((name, arguments))
        except OSError:
            self.end(self._fate.why("a rank does not listen"))
            self._check()

    def agree(self, failure: Exception, *, exhausted: bool) -> None:
        """As of `Ranks`."""
        answers = [each.hear(ranks.AGREEMENT_SECONDS) for each in self._others]
        if answers == [("failed", exhausted)] * len(answers):
            self.announce("go on")
            return
        if any(word is None for word, _ in answers):
            self._fate.why("")
        lines = str(failure).strip().splitlines() or [type(failure).__name__]
        self.end(f"a forward failed on rank 0 and not on all others ({lines[0][:200]})")
        self._check()

    def _check(self) -> None:
        if self._fate.reason is not None:
            raise EngineDeadError(f"the model's processes have ended: {self._fate.reason}; open the model again.")

    def end(self, reason: str) -> None:
        """As of `Ranks`."""
        self._fate.end(reason)

    def close(self) -> None:
        """End all ranks, once what runs is done."""
        self._finalizer()


def _close(fate: _Fate, closing: contextlib.ExitStack) -> None:
    fate.decide("the model was closed")
    for process in fate.processes:
        process.leave()
    for process in fate.processes:
        process.close()
    group.leave()
    closing.close()
