"""The engine of one rank: all are asked the same in the same order, so that all form the same batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...errors import ConfigError
from ..batch import ForwardItem, TokenSequence
from ..engine import Engine, Result, Step
from ..machine import memory
from ..runner import Runner
from .leader import Leader
from .ranks import Ranks


class RankEngine(Engine):
    """As `Engine`, on one of several ranks.

    Args:
        ranks: of which this process is one.
        options: of `Engine`.
    """

    def __init__(self, runner: Runner, ranks: Ranks, **options: Any) -> None:
        super().__init__(runner, **options)
        runner.is_spread = True
        self._ranks = ranks
        self._order = threading.Lock()

    def logits(self, sequences: Sequence[TokenSequence], *, asked: bool = True) -> list[Result]:
        """As of `Engine`."""
        with self._on_all("logits", sequences):
            return super().logits(sequences, asked=asked)

    def states(self, sequences: Sequence[TokenSequence]) -> list[Result]:
        """As of `Engine`."""
        with self._on_all("states", sequences):
            return super().states(sequences)

    def token_logits(self, sequences: Sequence[TokenSequence]) -> list[Result]:
        """As of `Engine`."""
        with self._on_all("token_logits", sequences):
            return super().token_logits(sequences)

    def forget_prefixes(self) -> None:
        """As of `Engine`."""
        with self._on_all("forget_prefixes"):
            super().forget_prefixes()

    def close(self) -> None:
        """As of `Engine`; the other ranks end."""
        with self._order:
            super().close()
            if isinstance(self._ranks, Leader):
                self._ranks.close()

    @contextmanager
    def _on_all(self, name: str, *arguments: Sequence[TokenSequence]) -> Iterator[None]:
        """Within it, this call runs on all ranks. One that ends in the middle leaves them apart, and ends them."""
        if any(each.media is not None for sequences in arguments for each in sequences):
            raise ConfigError("a model on several processes reads texts alone yet; leave images and videos out.")
        with self._order:
            try:
                self._ranks.announce(name, *arguments)
                yield
            except BaseException as failure:
                self._ranks.end(f"a call was ended by {type(failure).__name__}")
                raise

    def _instead(self, step: Step, works: Sequence[ForwardItem], failure: Exception) -> list[Result]:
        self._ranks.agree(failure, exhausted=memory.is_exhausted(failure))
        return super()._instead(step, works, failure)
