"""What is set around a forward, for everything that runs within it in this thread.

It is kept beside the model and not passed down, since not every model hands such arguments on to its layers.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .adapter import LoRAAdapter
from .row import PackedRow

Pieces = list[tuple[LoRAAdapter | None, slice]]


@dataclass
class AdapterRows:
    """The adapters of a batch, one a sequence, None for the model as it is."""

    adapters: Sequence[LoRAAdapter | None]
    pieces: dict[bool, Pieces] = field(default_factory=dict)

    def of_row(self, row: PackedRow | None) -> Pieces:
        """Which rows of a layer's input belong to which adapter."""
        one_each = row is None or (row.in_last_layer and row.last_keys is not None)  # a padded batch has one adapter
        if one_each not in self.pieces:
            lengths = [1] * len(self.adapters) if row is None or one_each else [each.num_queries for each in row.spans]
            self.pieces[one_each] = _joined(self.adapters, lengths)
        return self.pieces[one_each]


def _joined(adapters: Sequence[LoRAAdapter | None], lengths: Sequence[int]) -> Pieces:
    """Neighbours of one adapter together; where there is but one adapter, it takes whatever rows there are."""
    pieces: Pieces = []
    start = 0
    for adapter, length in zip(adapters, lengths, strict=True):
        end = start + length
        if pieces and pieces[-1][0] is adapter:
            pieces[-1] = (adapter, slice(pieces[-1][1].start, end))
        else:
            pieces.append((adapter, slice(start, end)))
        start = end
    return pieces if len(pieces) > 1 else [(adapters[0], slice(None))]


@dataclass(frozen=True)
class ForwardContext:
    """What a forward runs with.

    Args:
        row: the packed row; None where a batch is padded or a sequence runs alone.
        adapters: of the batch; None where none of it has one.
        exact: layers that were swapped for int8 run in float32.
    """

    row: PackedRow | None = None
    adapters: AdapterRows | None = None
    exact: bool = False


_NOTHING = ForwardContext()
_local = threading.local()


def current() -> ForwardContext:
    """What this thread's forward runs with."""
    context: ForwardContext = getattr(_local, "context", _NOTHING)
    return context


@contextmanager
def running(**values: Any) -> Iterator[ForwardContext]:
    """Within it, this thread's forwards run with these values of `ForwardContext`, and else with those around it."""
    before = current()
    _local.context = context = dataclasses.replace(before, **values)
    try:
        yield context
    finally:
        _local.context = before
