"""A model's mask function as a band of keys around each query, which varlen kernels take without a mask.

A window `(left, right)`: query `i` sees keys `i - left … i + right`, both included; -1 has no bound. So `(-1, -1)` sees
all, `(-1, 0)` is causal, and a causal sliding window of `w` tokens is `(w - 1, 0)`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch

from ..mask import PackedMask

Window = tuple[int, int]
FULL: Window = (-1, -1)
CAUSAL: Window = (-1, 0)

# Up to this length every query is looked at; beyond, those at both ends, around the window and 64 in between.
_WHOLE = 512
_EDGE = 16

_known: dict[tuple[Any, int], Window | None] = {}


class _NotPlain(Exception):
    """The function holds something whose value is not known on the host."""


def window_of(mask: PackedMask, longest: int) -> Window | None:
    """The band that a mask is, for prompts of up to `longest` tokens; None where it is no band, or cannot be told."""
    if mask.sees_all:
        return FULL
    if mask.plain_causal:
        return CAUSAL
    try:
        signature = _signature(mask.function)
    except _NotPlain:
        return None
    extent = 1 << max(longest - 1, 1).bit_length()
    if (signature, extent) not in _known:
        assert mask.function is not None
        _known[signature, extent] = _band(mask.function, extent)
    return _known[signature, extent]


def _signature(value: Any) -> Any:
    """What a function computes, as its code and what it closes over: transformers makes it anew for each forward."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return type(value), value
    if isinstance(value, (tuple, list)):
        return tuple(map(_signature, value))
    if type(value) is FunctionType and not value.__kwdefaults__:
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return value.__module__, value.__code__, _signature(cells), _signature(value.__defaults__)
    raise _NotPlain


def _band(function: Callable[..., Any], extent: int) -> Window | None:
    """Found by the first and the last query, then compared at many: a chunk or a prefix is no band."""
    try:
        ends = _table(function, torch.tensor([0, extent - 1]), extent)
        if not bool(ends.any(dim=1).all()):
            return None
        right = int(ends[0].nonzero()[-1])
        left = extent - 1 - int(ends[1].nonzero()[0])
        queries = _queries(left, extent)
        table = _table(function, queries, extent)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    distance = torch.arange(extent)[None] - queries[:, None]
    if not torch.equal(table, (distance >= -left) & (distance <= right)):
        return None
    return (-1 if left == extent - 1 else left, -1 if right == extent - 1 else right)


def _queries(left: int, extent: int) -> torch.Tensor:
    if extent <= _WHOLE:
        return torch.arange(extent)
    around = [place for centre in (0, left, extent - 1) for place in range(centre - _EDGE, centre + _EDGE)]
    between = torch.linspace(0, extent - 1, 64).long().tolist()
    return torch.tensor(sorted({place for place in around + between if 0 <= place < extent}))


def _table(function: Callable[..., Any], queries: torch.Tensor, num_keys: int) -> torch.Tensor:
    """`(num_queries, num_keys)`, True where a key is seen; on the CPU."""
    zero = queries.new_zeros(1, 1, 1, 1)
    seen = function(zero, zero, queries.view(1, 1, -1, 1), torch.arange(num_keys).view(1, 1, 1, -1))
    return torch.as_tensor(seen).expand(1, 1, len(queries), num_keys)[0, 0]
