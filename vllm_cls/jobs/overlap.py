"""Steps of a job that run at once: a thread reads ahead, another writes behind, and little waits between them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class _AbandonedError(BaseException):
    """The other side has stopped: nothing more is to come, or nobody takes it."""


class Channel(Generic[T]):
    """Items from one thread to another, in their order.

    Args:
        limit: what may wait together, by weight; one item may.
        weight: of an item.
    """

    def __init__(self, limit: int, weight: Callable[[T], int] = lambda item: 1) -> None:
        self._limit, self._weigh = limit, weight
        self._changed = threading.Condition()
        self._items: list[T] = []
        self._weight = 0
        self._end: BaseException | None = None
        self.seconds_full = self.seconds_empty = self.seconds_alone = 0.0
        """How long the sender waited for room, the receiver for an item, and how long the thread of the two worked."""

    def put(self, item: T) -> None:
        """Give an item, once there is room."""
        weight = self._weigh(item)
        with self._changed:
            if self._items and self._weight + weight > self._limit and self._end is None:
                began = time.perf_counter()
                self._changed.wait_for(lambda: not self._items or self._end is not None)
                self.seconds_full += time.perf_counter() - began
            if self._end is not None:
                raise self._end
            self._items.append(item)
            self._weight += weight
            if len(self._items) == 1:
                self._changed.notify_all()

    def end(self, how: BaseException | None = None) -> None:
        """No more is given, or taken; the other side comes to its end, or to this error after what waits."""
        with self._changed:
            self._end = self._end or how or StopIteration()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                if not self._items and self._end is None:
                    began = time.perf_counter()
                    self._changed.wait_for(lambda: self._items or self._end is not None)
                    self.seconds_empty += time.perf_counter() - began
                items, self._items, self._weight = self._items, [], 0
                self._changed.notify_all()
            if not items:
                assert self._end is not None
                if isinstance(self._end, StopIteration):
                    return
                raise self._end
            yield from items


@contextmanager
def ahead(items: Generator[T, None, None], channel: Channel[T]) -> Iterator[Iterator[T]]:
    """What a generator gives, fetched by a thread until the channel is full; its error is raised in its place.

    The thread has ended, and the generator is closed, when the context ends.
    """

    def fetch() -> None:
        began = time.perf_counter()
        try:
            for item in items:
                channel.put(item)
            channel.end()
        except BaseException as error:  # raised again where it is awaited
            channel.end(error)
        finally:
            items.close()
            channel.seconds_alone = time.perf_counter() - began - channel.seconds_full

    thread = threading.Thread(target=fetch, name="vllm_cls_reader", daemon=True)
    thread.start()
    try:
        yield iter(channel)
    finally:
        channel.end(_AbandonedError())
        thread.join()


@contextmanager
def at_once(items: Generator[T, None, None], channel: Channel[T]) -> Iterator[Iterator[T]]:
    """As `ahead`, by the thread that takes them: of what is waited for, such as standard input, which no one may end."""

    def timed() -> Iterator[T]:
        while True:
            began = time.perf_counter()
            try:
                item = next(items, None)
            finally:
                channel.seconds_alone += time.perf_counter() - began
            if item is None:
                return
            yield item

    with closing(items):
        yield timed()


@contextmanager
def behind(consume: Callable[[Iterator[T]], None], channel: Channel[T]) -> Iterator[Callable[[T], None]]:
    """A function that hands items to a thread, in which `consume` gets them; its error is raised at the next item.

    What was handed over is consumed when the context ends, also by an error; then `consume` is not told of the end, but
    left by an exception, so that it concludes nothing.
    """
    failed: list[BaseException] = []

    def run() -> None:
        began = time.perf_counter()
        try:
            consume(iter(channel))
        except _AbandonedError:
            pass
        except BaseException as error:
            failed.append(error)
            channel.end(error)
        finally:
            channel.seconds_alone = time.perf_counter() - began - channel.seconds_empty

    thread = threading.Thread(target=run, name="vllm_cls_writer", daemon=True)
    thread.start()
    try:
        yield channel.put
        channel.end()
    finally:
        channel.end(_AbandonedError())
        thread.join()
    if failed:
        raise failed[0]
