"""How far a job is, and how fast."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..resume.parts import Answered

_WINDOW = 60.0  # seconds that a rate is the mean of


@dataclass(frozen=True)
class JobProgress:
    """What a job has done so far.

    Args:
        rows: answered, bad ones and those of an earlier run included.
        share: of the inputs' bytes that were read up to the last of these rows; None where their size is unknown.
        errors: of the rows, those that failed.
        tokens: of their prompts.
        total: rows of the inputs, where these tell.
        counters: what the model has computed, at any moment; None of a server's.
    """

    rows: int = 0
    share: float | None = None
    errors: int = 0
    tokens: int = 0
    total: int | None = None
    counters: Callable[[], Any] = field(default=lambda: None, repr=False, compare=False)

    def with_row(self, answered: Answered) -> JobProgress:
        """One more row."""
        row, results = answered
        return replace(
            self,
            rows=self.rows + 1,
            share=row.done if self.total is None else (self.rows + 1) / max(1, self.total),
            errors=self.errors + (results.error is not None),
            tokens=self.tokens + results.tokens,
        )

    def with_running(self, count: int) -> JobProgress:
        """With rows of those that run now, whose answers come together."""
        if not (count and self.rows):
            return self
        share = None if self.share is None else min(1.0, self.share * (self.rows + count) / self.rows)
        return replace(self, rows=self.rows + count, share=share)


class Pace:
    """Rates of the last minute and the time left, from progress at moments.

    Args:
        began: the moment of no rows, in seconds of any clock.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._samples = deque([(began, JobProgress())])

    def at(self, progress: JobProgress, now: float) -> dict[str, Any]:
        """What there is to be told, by name; None where it is not known.

        Returns:
            rows, total, share, errors, seconds, rows_per_second, tokens_per_second, seconds_left.
        """
        samples = self._samples
        while len(samples) > 1 and now - samples[1][0] >= _WINDOW:
            samples.popleft()
        then, before = samples[0]
        if now > samples[-1][0]:
            samples.append((now, progress))
        seconds, rows = now - then, progress.rows - before.rows
        share = progress.share
        gained = 0.0 if share is None else share - (before.share or 0.0)
        return {
            "rows": progress.rows,
            "total": progress.total,
            "share": share,
            "errors": progress.errors,
            "seconds": now - self._began,
            "rows_per_second": rows / seconds if seconds > 0 else None,
            "tokens_per_second": (progress.tokens - before.tokens) / seconds if seconds > 0 else None,
            "seconds_left": (1 - share) * seconds / gained if share is not None and gained > 0 else None,
        }
