"""The requests that wait for the device: so many at most, taken by turns, so that no large one holds up the others."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ..errors import EngineDeadError, QueueFullError

if TYPE_CHECKING:
    from ..runtime.batch import TokenSequence
    from ..runtime.engine import Result

_LONGEST_RETRY = 60.0  # seconds; whoever comes back then is told anew
_FORGET = 0.8  # how much of what was measured stays as a window more is


@dataclass(eq=False)
class Request:
    """Sequences that were asked for together.

    Args:
        task: what runs for them.
        sequences: at least one.
        deadline: on the clock `time.monotonic`; what has not begun by then does not run.
        lengths: of the sequences, in tokens.
        num_waiting_tokens: of those that have not begun.
    """

    task: str
    sequences: Sequence[TokenSequence]
    deadline: float = math.inf
    answers: list[Result | None] = field(init=False)
    error: BaseException | None = field(default=None, init=False)
    num_begun: int = field(default=0, init=False)
    num_answered: int = field(default=0, init=False)
    queued_at: float = field(default=0.0, init=False)
    began_at: float = field(default=0.0, init=False)
    ended_at: float = field(default=0.0, init=False)
    waits: bool = field(default=False, init=False)
    lengths: list[int] = field(init=False)
    num_waiting_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.answers = [None] * len(self.sequences)
        self.lengths = [len(each) for each in self.sequences]
        self.num_waiting_tokens = sum(self.lengths)

    @property
    def is_done(self) -> bool:
        return self.error is not None or self.num_answered == len(self.sequences)


class Taken(NamedTuple):
    """One sequence whose turn has come; `repeated` where an identical one was taken with it."""

    request: Request
    place: int
    sequence: TokenSequence
    repeated: bool


class Window(NamedTuple):
    """What is taken at once, at most; a sequence that is longer is taken alone."""

    num_tokens: int
    num_sequences: int


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


class WaitingQueue:
    """Requests in flight and, of these, the sequences that wait; safe from any thread.

    Whose request would be done first, if all shared the device equally, has the next turn (see `FairQueue`): one of a
    thousand sequences gives way to small ones, without being starved by them.

    Args:
        max_requests: in flight.
        max_tokens: that wait; the request that reaches it is the last one taken.
    """

    def __init__(self, max_requests: int, max_tokens: int) -> None:
        self.max_requests, self.max_tokens = max_requests, max_tokens
        self.num_requests = 0
        self.num_tokens = 0
        self._heap: list[tuple[float, int, Request]] = []
        self._numbers = itertools.count()
        self._shares = FairQueue()
        self._refusal: str | None = None  # why no request is let in any more
        self._closed = False
        self._changed = threading.Condition()
        self._measured = (0.0, 0.0)  # tokens, seconds

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request, from its arrival to its answer.

        Raises:
            QueueFullError: there is none.
            EngineDeadError: no request is let in any more.
        """
        with self._changed:
            if self._refusal is not None:
                raise EngineDeadError(self._refusal)
            self._check_room()
            self.num_requests += 1
        try:
            yield
        finally:
            with self._changed:
                self.num_requests -= 1

    def put(self, request: Request) -> None:
        """Have a request that has a place wait for its turn.

        Raises:
            QueueFullError: meanwhile too many tokens wait.
            EngineDeadError: nothing runs any more.
        """
        with self._changed:
            if self._closed:
                raise EngineDeadError(self._refusal or "")
            self._check_room(arriving=False)
            request.queued_at, request.waits = time.perf_counter(), True
            self.num_tokens += request.num_waiting_tokens
            end = self._shares.join(request.num_waiting_tokens)
            heapq.heappush(self._heap, (end, next(self._numbers), request))
            self._changed.notify()

    def discard(self, request: Request) -> None:
        """What a request still waits for does not run; nothing, if it does not wait."""
        with self._changed:
            self._leave(request)

    def take(self, window: Window) -> list[Taken]:
        """Whose turn it is, as soon as anyone waits; nobody, once the queue is closed."""
        with self._changed:
            while not self._closed:
                if taken := self._take(window):
                    return taken
                self._changed.wait()
            return []

    def measured(self, tokens: int, seconds: float) -> None:
        """So many tokens that were taken together ran in so much time."""
        self._measured = (self._measured[0] * _FORGET + tokens, self._measured[1] * _FORGET + seconds)

    @property
    def tokens_per_second(self) -> float | None:
        """As measured lately; None before anything ran."""
        tokens, seconds = self._measured
        return tokens / seconds if seconds else None

    def refuse(self, reason: str) -> None:
        """Let no request in any more; those in flight are not touched."""
        with self._changed:
            self._refusal = self._refusal or reason

    def close(self, reason: str) -> list[Request]:
        """Let none in and run none any more; gives back those that waited."""
        with self._changed:
            self._refusal, self._closed = reason, True
            waiting = [request for *_, request in self._heap if request.waits]
            for request in waiting:
                self._leave(request)
            self._heap.clear()
            self._changed.notify_all()
            return waiting

    def _check_room(self, *, arriving: bool = True) -> None:
        if self.num_tokens >= self.max_tokens:
            raise self._full(f"the {self.max_tokens} tokens that may wait do")
        if arriving and self.num_requests >= self.max_requests:
            raise self._full(f"{self.num_requests} requests are in flight, which is the limit")

    def _full(self, what: str) -> QueueFullError:
        seconds = self.num_tokens / self.tokens_per_second if self.tokens_per_second else 1.0
        seconds = min(max(1.0, seconds / 2), _LONGEST_RETRY)  # half of what waits has to go, not all
        return QueueFullError(f"the queue is full: {what}; try again in {math.ceil(seconds)} s.", seconds)

    def _take(self, window: Window) -> list[Taken]:
        taken: list[Taken] = []
        seen: set[Hashable] = set()
        num_tokens, now = 0, time.monotonic()
        while self._heap and len(seen) < window.num_sequences:
            request = self._heap[0][-1]
            if not request.waits or request.deadline <= now:
                heapq.heappop(self._heap)
                self._leave(request)
                continue
            sequence, length = request.sequences[request.num_begun], request.lengths[request.num_begun]
            key = (request.task, sequence)
            repeated = key in seen
            if taken and not repeated and num_tokens + length > window.num_tokens:
                break
            if not repeated:  # what runs once costs once
                seen.add(key)
                num_tokens += length
            taken.append(Taken(request, request.num_begun, sequence, repeated))
            request.num_begun += 1
            request.num_waiting_tokens -= length
            request.began_at = request.began_at or time.perf_counter()
            request.waits = request.num_begun < len(request.sequences)
            self._gone(length)
        return taken

    def _leave(self, request: Request) -> None:
        if request.waits:
            self._gone(request.num_waiting_tokens)
            request.waits = False

    def _gone(self, num_tokens: int) -> None:
        """So many tokens wait no longer."""
        self.num_tokens -= num_tokens
        self._shares.served(num_tokens)
