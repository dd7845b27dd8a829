"""Rank 0 of processes with the same model: one of the others that ends is replaced."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import ranks
from .leader import Leader
from .process import RankProcess

_logger = logging.getLogger("vllm_cls")


class ReplicaLeader(Leader):
    """As `Leader`, of processes that exchange nothing.

    Once all are ready, one that ends costs no answer: what it was asked is not answered, and another takes its place and takes
    part when it has loaded the model. All end when too many have ended in a while (`ranks.MOST_REPLACED`).
    """

    def __init__(self, size: int, module: str, task: Mapping[str, Any]) -> None:
        super().__init__(size, module, task, None)
        self._loading: set[RankProcess] = set()
        self._replaced: list[float] = []

    def present(self) -> list[RankProcess]:
        """Those that take part in a call; those that have ended are replaced.

        Raises:
            EngineDeadError: too many have.
        """
        self._fate.is_common = False  # all are ready, or there would be no call
        self._check()
        for place, each in enumerate(self._others):
            if each in self._loading:
                self._listen(each)
            if each.has_ended:
                self._replace(place)
        return [each for each in self._others if each not in self._loading]

    def _listen(self, each: RankProcess) -> None:
        """Take what one that loads says."""
        while (heard := each.hear(0))[0] is not None:
            if heard[0] == "ready":
                self._loading.discard(each)
                _logger.warning("rank %d takes part again.", each.rank)
            elif heard[0] == "failed":  # and ends
                _logger.error("rank %d: %s", each.rank, heard[1])

    def _replace(self, place: int) -> None:
        gone, now = self._others[place], time.monotonic()
        self._loading.discard(gone)
        self._replaced = [each for each in self._replaced if now - each < ranks.REPLACED_SECONDS]
        if len(self._replaced) >= ranks.MOST_REPLACED:
            self.end(f"{gone.ended()}, and {len(self._replaced)} were replaced in the last hour")
            self._check()
        self._replaced.append(now)
        _logger.error("%s; another takes its place, the others go on meanwhile.", gone.ended())
        gone.leave()
        with contextlib.suppress(OSError):  # it has ended already, and is replaced in turn
            self._others[place] = self._started(gone.rank)
            self._loading.add(self._others[place])

    def announce(self, name: str, *arguments: Any) -> None:
        """Have those that are there begin a call without an answer."""
        for each in self.present():
            with contextlib.suppress(OSError):
                each.tell((name, arguments))

    def ask(self, those: Sequence[RankProcess], name: str, parts: Sequence[Sequence[Any]]) -> None:
        """Have processes begin a call, each on its own part; those without one rest."""
        for each, part in zip(those, parts, strict=True):
            if part:
                with contextlib.suppress(OSError):  # it has no answer then
                    each.tell((name, (part,)))

    def answer(self, each: RankProcess) -> Any:
        """What one answers that was asked; None where it has ended, or says nothing for long, and ends by that."""
        word, value = each.hear(ranks.FORWARD_SECONDS)
        if word == "answers":
            return value
        each.close()
        return None
