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
from ..row import StopAfterKeyValues

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
    hidden = args[0] if args else kwargs["hidden_states"]
    row.wants_keys_only = True
    with suppress(StopAfterKeyValues):
        whole(*args, **kwargs)
        raise NotPackable("its last layer does not attend through the interface")
    length = hidden.shape[1]
    row.num_pruned = length - len(row.pooled)
    scattered = torch.zeros_like(hidden)
    if len(row.pooled) == 0:
        return scattered
    given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    for place, each in given.items():
        if isinstance(each, torch.Tensor | tuple):
            given[place] = _cut(each, row.pooled, length, cuts, (place,))
    output = whole(*[given.pop(place) for place in range(len(args))], **given)
    row.last_keys = None
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
