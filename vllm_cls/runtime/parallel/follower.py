"""Another rank, which does what the leader announces and ends with it."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from ...errors import EngineDeadError
from . import group, ranks


class Follower:
    """Another rank, in a process that a leader started.

    Args:
        arguments: of the process.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):  # the leader decides when it ends: it finishes what runs
            signal.signal(each, signal.SIG_IGN)
        self._pipe = Connection(int(arguments[1]))
        first = self._pipe.recv()
        self.task: Mapping[str, Any] = first.pop("task")
        self.rank: int = first["rank"]
        self.size: int = first["size"]
        self._meeting = first
        self._words: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def join(self) -> None:
        """Meet the others; heavy imports are done by now."""
        self.say("met")
        if self._meeting["backend"] is not None:
            group.join(**self._meeting, timeout=timedelta(seconds=ranks.FORWARD_SECONDS))

    def say(self, word: str, value: Any = None) -> None:
        """Tell the leader."""
        self._pipe.send((word, value))

    def _listen(self) -> None:
        """Take what the leader says; whatever this process waits for, it ends with the leader."""
        try:
            while True:
                self._words.put(self._pipe.recv())
        except (EOFError, OSError):
            os._exit(0)

    def calls(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """The calls that the leader announces, until it ends."""
        while True:
            yield self._words.get()

    def announce(self, name: str, *arguments: Any) -> None:
        """As of `Ranks`: here it was announced."""

    def agree(self, failure: Exception, *, exhausted: bool) -> None:
        """As of `Ranks`."""
        self.say("failed", exhausted)
        try:
            word, _ = self._words.get(timeout=ranks.AGREEMENT_SECONDS)
        except queue.Empty:
            word = ""
        if word != "go on":
            raise EngineDeadError(f"a forward failed on rank {self.rank} alone.") from failure

    def end(self, reason: str) -> None:
        """As of `Ranks`: the leader notices."""
