"""The host works ahead of the device: it collates and submits the next batch while the device runs the last one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

DEPTH = 2
"""Batches that are submitted and not yet collected."""


def look_ahead(begin: Callable[[A], Callable[[], B]], items: Sequence[A], depth: int = DEPTH) -> list[B]:
    """What each item comes to, in their order.

    Args:
        begin: submits an item's work and gives back what waits for it.
        depth: items submitted at the same time at most.
    """
    waiting: deque[Callable[[], B]] = deque()
    done: list[B] = []
    for item in items:
        if len(waiting) == depth:
            done.append(waiting.popleft()())
        waiting.append(begin(item))
    done.extend(finish() for finish in waiting)
    return done
