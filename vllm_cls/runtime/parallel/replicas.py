"""Several processes with the same model: each call is shared out among them, and the first one's caller gets all answers."""

from __future__ import annotations

import functools
import heapq
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...errors import ConfigError, PromptError
from ..batch import TokenSequence
from ..counters import Counters
from ..engine import Engine, Result, SequenceResult
from ..runner import Runner
from .replica_leader import ReplicaLeader


class ReplicaEngine(Engine):
    """As `Engine`, of the process that leads.

    Args:
        ranks: the others have engines of their own.
        options: of `Engine`.
    """

    def __init__(self, runner: Runner, *, ranks: ReplicaLeader, **options: Any) -> None:
        super().__init__(runner, **options)
        self._ranks = ranks
        self._order = threading.Lock()

    def logits(self, sequences: Sequence[TokenSequence], *, asked: bool = True) -> list[Result]:
        """As of `Engine`."""
        return self._shared_out("logits", sequences, functools.partial(super().logits, asked=asked))

    def states(self, sequences: Sequence[TokenSequence]) -> list[Result]:
        """As of `Engine`."""
        return self._shared_out("states", sequences, super().states)

    def token_logits(self, sequences: Sequence[TokenSequence]) -> list[Result]:
        """As of `Engine`."""
        return self._shared_out("token_logits", sequences, super().token_logits)

    def forget_prefixes(self) -> None:
        """As of `Engine`."""
        with self._order:
            try:
                self._ranks.announce("forget_prefixes")
            except BaseException as failure:
                self._ranks.end(f"a call was ended by {type(failure).__name__}")
                raise
            super().forget_prefixes()

    @property
    def window(self) -> tuple[int, int]:
        """As of `Engine`, for all processes."""
        tokens, sequences = super().window
        return tokens * self._ranks.size, sequences * self._ranks.size

    def close(self) -> None:
        """As of `Engine`; the other processes end."""
        with self._order:
            super().close()
            self._ranks.close()

    def _shared_out(
        self, name: str, sequences: Sequence[TokenSequence], run: Callable[[Sequence[TokenSequence]], list[Result]]
    ) -> list[Result]:
        if any(each.media is not None for each in sequences):
            raise ConfigError("a model on several processes reads texts alone yet; leave images and videos out.")
        answers: list[Any] = [None] * len(sequences)

        def run_here(part: Sequence[int]) -> None:
            for place, answer in zip(part, run([sequences[each] for each in part]), strict=True):
                answers[place] = answer

        with self._order:
            try:
                others = self._ranks.present()
                own, *parts = shares([len(each) for each in sequences], 1 + len(others))
                self._ranks.ask(others, name, [[sequences[place] for place in part] for part in parts])
                run_here(own)
                for each, part in zip(others, parts, strict=True):
                    if part and (sent := self._ranks.answer(each)) is None:
                        run_here(part)
                    elif part:
                        found, counts = _opened(sent)
                        self.counters.add(**counts)
                        for place, answer in zip(part, found, strict=True):
                            answers[place] = answer
            except BaseException as failure:
                self._ranks.end(f"a call was ended by {type(failure).__name__}")
                raise
        return answers


def shares(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Indices of sequences for each of several processes, the longest first to whom has the fewest tokens."""
    parts: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        load, number = loads[0]
        heapq.heapreplace(loads, (load + lengths[index], number))
        parts[number].append(index)
    return [sorted(part) for part in parts]


def closed(found: Sequence[Result], counts: Counters) -> tuple[list[Any], dict[str, int]]:
    """Answers and what was counted, for a pipe."""
    rows = [(each.row.numpy(), each.num_cached_tokens) if isinstance(each, SequenceResult) else each for each in found]
    return rows, {name: count for name, count in vars(counts).items() if name.startswith("num_")}


def _opened(sent: tuple[list[Any], dict[str, int]]) -> tuple[list[Result], dict[str, int]]:
    rows, counts = sent
    return [
        each if isinstance(each, PromptError) else SequenceResult(torch.from_numpy(each[0]), each[1]) for each in rows
    ], counts
