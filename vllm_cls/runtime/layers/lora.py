"""LoRA adapters while a batch runs: each linear layer adds, to the rows of each adapter, that adapter's low-rank part.

Hu et al., LoRA (arXiv:2106.09685); several adapters in one batch as in Punica (arXiv:2310.18547) and vLLM. What an
adapter adds comes behind a layer's own product, so it works with joined projections and with int8 as it is.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..adapter import LoRAAdapter
from ..batch import ForwardItem
from ..row import PackedRow, current

Pieces = list[tuple[LoRAAdapter | None, slice]]


@dataclass
class _Running:
    """The adapters of the batch that a thread runs, one a sequence."""

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


_local = threading.local()


@contextmanager
def adapted(works: Sequence[ForwardItem]) -> Iterator[None]:
    """Within it, this thread's forwards run these works with their adapters."""
    adapters = [each.sequence.adapter for each in works]
    if not any(adapters):
        yield
        return
    _local.running = _Running(adapters)
    try:
        yield
    finally:
        del _local.running


def let_adapt(layers: Mapping[str, nn.Module]) -> None:
    """Make linear layers, given by their paths in the classifier, add what adapters say; in place."""
    for path, layer in layers.items():
        layer.register_forward_hook(functools.partial(_add, path))


def _add(path: str, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
    """A forward hook: the output with what each adapter adds to its rows, in place."""
    running: _Running | None = getattr(_local, "running", None)
    if running is None or output.stride(-1) == 0:  # queries that nobody asks for: one zero, expanded
        return None
    x, pieces = args[0], running.of_row(current())
    if len(pieces) > 1 and (x.ndim != 3 or x.shape[:2] != (1, pieces[-1][1].stop)):
        # The engine runs each sequence by itself then.
        raise RuntimeError(f"{path} reads other rows than the batch's; adapters cannot be told apart in it")
    rows, outputs = x.reshape(-1, x.shape[-1]), output.view(-1, output.shape[-1])
    for adapter, piece in pieces:
        if adapter is not None and path in adapter.low_rank:
            a, b, scale = adapter.low_rank[path]
            outputs[piece].addmm_(rows[piece] @ a, b, alpha=scale)
    return None
