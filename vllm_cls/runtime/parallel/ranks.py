"""The processes that a model is spread over, its ranks: the caller's own leads, the others do what it announces.

They talk over pipes: which call comes, whether a forward failed on all of them. What a forward exchanges goes through
torch.distributed, whose members find each other by a file that only this user reads.
"""

from __future__ import annotations

from typing import Any, Protocol

START_SECONDS = 300.0
"""For a process to import its libraries; for all to meet."""
FORWARD_SECONDS = 1800.0
"""For what ranks exchange: one may have read its part of the weights long before another."""
AGREEMENT_SECONDS = 20.0
"""Between the failures of a forward on the first and on the last rank."""
END_SECONDS = 5.0
MOST_REPLACED, REPLACED_SECONDS = 3, 3600.0
"""How many processes with the same model take the place of ones that have ended, in so many seconds."""


class Ranks(Protocol):
    """One process's view of all of them.

    Args:
        rank: its number; 0 leads.
        size: how many there are.
    """

    rank: int
    size: int

    def announce(self, name: str, *arguments: Any) -> None:
        """Have all ranks begin a call of the engine."""

    def agree(self, failure: Exception, *, exhausted: bool) -> None:
        """Return if a forward failed on all ranks for the same reason, so that all go on alike.

        Raises:
            EngineDeadError: it did not.
        """

    def end(self, reason: str) -> None:
        """End all ranks; calls that come later fail with the reason."""
