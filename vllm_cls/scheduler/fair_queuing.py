"""When each request would be done, if all who are there shared the device equally."""

from __future__ import annotations

import heapq


class FairQueue:
    """A clock that runs as fast as the share of one: a request of n tokens that comes at `now` is done at `now + n`.

    To run those first who would be done first lets short requests pass long ones and keeps like ones in the order in which
    they came, and yet nobody is done later than if all had shared equally (Friedman and Henderson, "Fairness and efficiency
    in web server protocols", 2003: the Fair Sojourn Protocol).
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._ends: list[float] = []

    def join(self, tokens: int) -> float:
        """When a request that comes now would be done."""
        end = self.now + tokens
        heapq.heappush(self._ends, end)
        return end

    def served(self, tokens: float) -> None:
        """So many tokens were taken from all together, whoever they were taken from."""
        while self._ends and tokens > 0:
            count, first = len(self._ends), self._ends[0]
            if self.now + tokens / count < first:
                self.now += tokens / count
                return
            tokens -= (first - self.now) * count
            self.now = heapq.heappop(self._ends)
