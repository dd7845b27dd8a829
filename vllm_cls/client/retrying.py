"""Retries: when a call is tried again, and after which pause."""

from __future__ import annotations

import email.utils
import random
import time
from dataclasses import dataclass, field

RETRIED = frozenset({429, 503})  # overloaded; not ready
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0


@dataclass
class Attempts:
    """The tries of one call.

    Args:
        retries: how often it may be tried again.
        timeout: seconds for all tries and the pauses between them.
    """

    retries: int
    timeout: float
    _made: int = 0
    _began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left, a few milliseconds at least."""
        return max(self._began + self.timeout - time.monotonic(), 0.005)

    def pause(self, retry_after: float | None = None) -> float | None:
        """Seconds to wait before the next try, or None where there shall be none.

        Without a word of the server they double each time; part of them is random, so that many clients do not come
        back at once.

        Args:
            retry_after: seconds that the server asked for; the pause is never shorter.
        """
        if self._made >= self.retries:
            return None
        backoff = min(_FIRST_PAUSE * 2**self._made, _LONGEST_PAUSE)
        self._made += 1
        pause = (retry_after or 0.0) + backoff * random.uniform(0.5, 1.0)
        return pause if pause < self.left else None


def retry_after_seconds(value: str | None) -> float | None:
    """The header Retry-After, which holds seconds or a date; None where it is absent or neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(seconds, 0.0) if seconds < float("inf") else None
