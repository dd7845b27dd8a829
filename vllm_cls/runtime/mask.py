"""Masks of a packed row: the model's mask function, evaluated for each sequence by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from transformers.masking_utils import causal_mask_function

# What one sequence's queries may see: an explicit mask `(1, 1, num_queries, num_keys)` or None, and whether the
# kernel's own causal rule holds (only where queries and keys are the same tokens).
Seen = tuple["torch.Tensor | None", bool]

MOST_SCORES = 1 << 22
"""Of one head and some queries, that are in memory at once: 16 MB."""
_MOST_KEPT = 1 << 26  # entries of a sequence's tables that the next layer finds again


class SeenPart(NamedTuple):
    """What some queries of a sequence see of some of its keys, which are all that they see; slices within the sequence."""

    queries: slice
    keys: slice
    table: torch.Tensor | None
    causal: bool


class PackedMask:
    """What the mask interface answers.

    Args:
        function: transformers' `(batch, head, query index, key index) -> bool`, or None for "see all".
        by_row: the function takes indices within the row, where it looks up what tokens are (images of Gemma 3); else
            within a prompt.
    """

    def __init__(self, function: Callable[..., Any] | None, *, by_row: bool = False) -> None:
        self.function = function
        self._by_row = by_row
        self.sees_all = function is None
        self.plain_causal = function is causal_mask_function
        self._seen: dict[tuple[int, int, int, int], Seen] = {}
        self._parts: dict[tuple[int, ...], list[SeenPart]] = {}
        self._causal: dict[int, bool] = {}

    def seen(self, offset: int, num_queries: int, num_keys: int, device: torch.device, start: int = 0) -> Seen:
        """What queries `offset … offset + num_queries` see of keys `0 … num_keys`, indices within the prompt.

        Args:
            start: row index of the prompt's first token.
        """
        if self.sees_all:
            return None, False
        if self.plain_causal and offset == 0 and num_queries == num_keys:
            return None, True
        if self.plain_causal and num_queries == 1 and offset == num_keys - 1:
            return None, False
        key = (offset, num_queries, num_keys, start if self._by_row else 0)
        if key not in self._seen:
            self._seen[key] = self._evaluate(*key, device)
        return self._seen[key]

    def parts(
        self,
        offset: int,
        num_queries: int,
        num_keys: int,
        device: torch.device,
        start: int = 0,
        *,
        most: int,
        fused: bool,
    ) -> Iterator[SeenPart]:
        """As `seen`, a few queries at a time, so that memory does not grow with the square of the length.

        Args:
            most: scores of a part, of one head.
            fused: scores are never in memory, so that what needs no table stays whole.
        """
        everything = (slice(0, num_queries), slice(0, num_keys))
        if num_queries * num_keys <= most:
            yield SeenPart(*everything, *self.seen(offset, num_queries, num_keys, device, start))
            return
        if fused and (self.sees_all or (self.plain_causal and offset == 0 and num_queries == num_keys)):
            yield SeenPart(*everything, None, not self.sees_all)
            return
        key = (offset, num_queries, num_keys, start if self._by_row else 0, most)
        if key in self._parts:
            yield from self._parts[key]
            return
        found: list[SeenPart] = []
        kept, causal = 0, fused and offset == 0 and num_queries == num_keys
        for first in range(0, num_queries, max(1, most // num_keys)):
            queries = slice(first, min(num_queries, first + max(1, most // num_keys)))
            part = self._part(queries, offset, num_keys, key[3], device)
            kept += 0 if part.table is None else part.table.numel()
            causal = causal and _follows_causal_rule(part)
            if kept <= _MOST_KEPT:
                found.append(part)
            yield part
        if causal:  # a window wider than the sequence: from now on the fast kernel has it
            self._parts[key] = [SeenPart(*everything, None, True)]
        elif kept <= _MOST_KEPT:
            self._parts[key] = found

    def _part(self, queries: slice, offset: int, num_keys: int, start: int, device: torch.device) -> SeenPart:
        if self.sees_all:
            return SeenPart(queries, slice(0, num_keys), None, False)
        table = self._table(offset + queries.start, queries.stop - queries.start, num_keys, start, device)
        keys = slice(0, num_keys)
        if device.type == "cpu" and bool(table.any(1).all()):  # to look at it would wait for another device
            seen = table.any(0).nonzero()
            keys = slice(int(seen[0]), int(seen[-1]) + 1)
        return SeenPart(queries, keys, table[None, None, :, keys].contiguous(), False)

    def is_causal(self, length: int, device: torch.device) -> bool:
        """Whether no token of a prompt of this length sees what follows it."""
        if self.sees_all:
            return length == 1
        if self.plain_causal:
            return True
        if length not in self._causal:
            mask = self._table(0, length, length, 0, device)
            self._causal[length] = not bool(mask.triu(1).any())
        return self._causal[length]

    def _table(self, offset: int, num_queries: int, num_keys: int, start: int, device: torch.device) -> torch.Tensor:
        """`(num_queries, num_keys)`, True where a key is seen; `start` is where the function counts the prompt from."""
        assert self.function is not None
        queries = torch.arange(start + offset, start + offset + num_queries, device=device)
        keys = torch.arange(start, start + num_keys, device=device)
        zero = queries.new_zeros(1, 1, 1, 1)
        mask = self.function(zero, zero, queries.view(1, 1, -1, 1), keys.view(1, 1, 1, -1))
        return torch.as_tensor(mask, device=device).expand(1, 1, num_queries, num_keys)[0, 0]

    def _evaluate(self, offset: int, num_queries: int, num_keys: int, start: int, device: torch.device) -> Seen:
        mask = self._table(offset, num_queries, num_keys, start, device)
        if device.type != "cpu":  # to look at it would wait for the device
            return mask[None, None], False
        if bool(mask.all()):  # a window wider than the sequence: let the fast kernel have it
            return None, False
        if offset == 0 and num_queries == num_keys and torch.equal(mask, torch.ones_like(mask).tril()):
            return None, True
        return mask[None, None], False


def _follows_causal_rule(part: SeenPart) -> bool:
    """Whether queries see all that comes before them, of a sequence that begins with them."""
    if part.table is None or part.keys != slice(0, part.queries.stop):
        return False
    rows, keys = part.table.shape[2:]
    return torch.equal(part.table[0, 0], torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows))


SEES_ALL = PackedMask(None)
"""Each token sees all of its sequence."""
