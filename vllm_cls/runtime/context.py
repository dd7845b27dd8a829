"""What is set around a forward, for everything that runs within it in this thread.

It is kept beside the model and not passed down, since not every model hands such arguments on to its layers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .adapter import AdapterRows
from .row import PackedRow


class ForwardContext(threading.local):
    """What this thread's forward runs with.

    Args:
        row: the packed row; None where a batch is padded or a sequence runs alone.
        adapters: of the batch; None where none of it has one.
        exact: layers that were swapped for int8 run in float32.
    """

    row: PackedRow | None = None
    adapters: AdapterRows | None = None
    exact: bool = False


current = ForwardContext()


@contextmanager
def running(**values: Any) -> Iterator[None]:
    """Within it, this thread's forwards run with these values of `current`, and else with those around it."""
    before = {name: getattr(current, name) for name in values}
    vars(current).update(values)
    try:
        yield
    finally:
        vars(current).update(before)
