"""The host works ahead of the device: it collates and submits the next batch while the device runs the last one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

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


def fetch(rows: torch.Tensor | list[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
    """Begin to copy rows to the host; what it gives back waits for them, and gives one tensor each.

    Args:
        rows: `(num_rows, …)`, or a list of tensors.
    """
    if isinstance(rows, torch.Tensor):
        all_rows = _to_host(rows)
        return lambda: list(all_rows())
    if not rows or rows[0].device.type == "cpu":
        return lambda: [row.clone() for row in rows]  # the caller's, outside inference mode
    if len({row.shape[1:] for row in rows}) > 1:  # adapters with other numbers of labels
        copies = [_to_host(row) for row in rows]
        return lambda: [copy() for copy in copies]
    sizes = [len(row) for row in rows]
    together = _to_host(torch.cat(rows))
    return lambda: list(together().split(sizes))


def _to_host(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    if tensor.device.type == "cpu":
        return tensor.clone  # the caller's, outside inference mode
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))

    def wait() -> torch.Tensor:
        copied.synchronize()
        return host.clone()  # pinned memory is given back, however long the rows are kept

    return wait
