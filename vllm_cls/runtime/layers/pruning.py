"""The last layer, run for the pooled positions alone.

CLS and LAST pooling read one state a sequence, so of the last layer only keys and values are needed of every
token; queries, output projection, norms and MLP are needed of the pooled ones. The layer's own forward runs
twice: over all tokens, stopped by our attention once it has keys and values, then over the pooled rows
against them. No layer is written anew, so this holds for any architecture whose layer mixes tokens only in
attention; the self-check finds the others.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from ..attention.packed_attention import NotPackable
from ..context import current
from ..row import PackedRow, StopAfterKeyValues

Cuts = dict[tuple[int | str, ...], bool]


def prune_last_layer(layers: Sequence[nn.Module]) -> None:
    """Make the last of a backbone's layers run as above whenever the row says which tokens are pooled."""
    layer: Any = layers[-1]
    # Of functions that a copy of the model makes its own: a closure would go on running this layer.
    layer.forward = functools.partial(_forward, layer.forward, {})


def _forward(whole: Any, cuts: Cuts, *args: Any, **kwargs: Any) -> Any:
    row = current.row
    if row is None or row.pooled is None:
        return whole(*args, **kwargs)
    return _pruned(whole, cuts, row, args, kwargs)


def _pruned(whole: Any, cuts: Cuts, row: PackedRow, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    assert row.pooled is not None
    hidden = args[0] if args else kwargs["hidden_states"]
    row.in_last_layer = True
    with suppress(StopAfterKeyValues):
        whole(*args, **kwargs)
        raise NotPackable("its last layer does not attend through the interface")
    row.num_pruned = hidden.shape[1] - len(row.pooled)
    scattered = torch.zeros_like(hidden)
    if len(row.pooled) == 0:
        return scattered
    length = hidden.shape[1]
    output = whole(
        *[_cut(each, row.pooled, length, cuts, (place,)) for place, each in enumerate(args)],
        **{name: _cut(each, row.pooled, length, cuts, (name,)) for name, each in kwargs.items()},
    )
    row.in_last_layer = False
    states = output[0] if isinstance(output, tuple) else output
    # Back to a whole row: what comes behind the layers counts on it.
    scattered[:, row.pooled] = states
    return (scattered, *output[1:]) if isinstance(output, tuple) else scattered


def _cut(value: Any, rows: torch.Tensor, length: int, cuts: Cuts, place: tuple[int | str, ...]) -> Any:
    """What belongs to these rows of a layer's argument: states `(1, num_tokens, …)`, positions `(1, num_tokens)`.

    Args:
        cuts: whether an argument has rows of tokens at all, by its place. The first run, which is the self-check,
            decides; by its size alone a later one could take heads or features for tokens.
    """
    if isinstance(value, tuple):
        return tuple(_cut(each, rows, length, cuts, (*place, number)) for number, each in enumerate(value))
    if not isinstance(value, torch.Tensor) or value.ndim < 2:
        return value
    dimension = -2 if value.ndim > 2 else -1
    return value.index_select(dimension, rows) if cuts.setdefault(place, value.shape[dimension] == length) else value
