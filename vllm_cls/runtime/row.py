"""One packed row during its forward: which tokens belong together, and what its attention may keep or reuse.

It is kept beside the model, local to the thread: some models do not pass such arguments down to their attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from .mask import PackedMask


@dataclass
class KeyValues:
    """Keys and values of the first `num_tokens` tokens of a prompt, one pair a layer.

    Each is `(1, key_value_heads, num_tokens, head_dim)`.
    """

    num_tokens: int
    layers: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def append(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep a layer's first `num_tokens` keys and values: copies, since a view would hold all of the row's."""
        first = slice(0, self.num_tokens)
        copies = [each[:, :, first].clone(memory_format=torch.contiguous_format) for each in (key, value)]
        self.layers.append((copies[0], copies[1]))

    @property
    def num_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for pair in self.layers for each in pair)


@dataclass(frozen=True)
class SequenceSpan:
    """A sequence's queries and keys within a row, each as a range of row indices.

    Args:
        queries: the queries.
        keys: the sequence's own keys.
        offset: place of the first query in the whole prompt, what was computed earlier included.
        past: keys and values that come before the sequence's own, or None.
        keep: gets keys and values of the whole prompt, or None.
    """

    queries: slice
    keys: slice
    offset: int = 0
    past: KeyValues | None = None
    keep: KeyValues | None = None

    @property
    def num_queries(self) -> int:
        return int(self.queries.stop - self.queries.start)

    @property
    def start(self) -> int:
        """Row index of the prompt's first token; negative where it was computed earlier."""
        return int(self.keys.start) - (self.past.num_tokens if self.past else 0)

    @property
    def num_keys(self) -> int:
        return int(self.keys.stop - self.keys.start) + (self.past.num_tokens if self.past else 0)


class StopAfterKeyValues(Exception):
    """The last layer has its keys and values: what follows is computed for the pooled positions alone."""


@dataclass(frozen=True)
class VarlenLayout:
    """Where each sequence's queries and keys lie, made once a row and read by every layer.

    Args:
        cu_queries: `(num_sequences + 1,)` int32 on the device: where each one's queries begin, and where they end.
        cu_keys: the same of the keys, those of its past included.
        max_queries: of one sequence; max_keys likewise. Larger than true is allowed.
        aligned: everyone's last query is the token of its last key, which is how kernels place a band.
        pasts: keys and values that sequences go on from, each once.
        order: `(num_keys,)` rows of the row's own keys followed by those of `pasts`, sequence by sequence; None where
            there are no pasts, and the row's own keys are in place.
    """

    cu_queries: torch.Tensor
    cu_keys: torch.Tensor
    max_queries: int
    max_keys: int
    aligned: bool
    pasts: tuple[KeyValues, ...] = ()
    order: torch.Tensor | None = None

    def keys_of(self, own: torch.Tensor, layer: int, which: int) -> torch.Tensor:
        """Keys (`which` 0) or values (1) of all sequences, `(num_keys, heads, width)`, of a row's own `(1, heads, …)`."""
        rows = own[0].transpose(0, 1)
        if self.order is None:
            return rows
        parts = [rows, *(past.layers[layer][which][0].transpose(0, 1) for past in self.pasts)]
        return torch.cat(parts).index_select(0, self.order)


class RowKernel(Protocol):
    """Attention over a whole row at once."""

    name: str

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        spans: Sequence[SequenceSpan],
        mask: PackedMask,
        scaling: float | None,
        softcap: float | None,
        row: PackedRow,
    ) -> torch.Tensor | None:
        """As `sdpa.attend`; None where this kernel cannot, and each sequence has to run by itself."""


@dataclass
class PackedRow:
    """What attention knows of the row that runs.

    Args:
        spans: one a sequence, in the order of the row.
        pooled: row indices of the tokens whose states are wanted; None wants all.
        pooled_spans: the spans again, each with its pooled token as its only query.
        layer: how many attention layers have run.
        causal: None does not look; True becomes False once a mask lets a token see what follows it.
        wants_keys_only: the last layer runs for the first time, for keys and values of all tokens; it runs again for the
            pooled ones.
        last_keys: keys and values that the last layer's first pass left for its second, while that runs.
        num_pruned: tokens of which the last layer computed keys and values only.
        kernel: runs all spans at once where it can; None runs each by itself.
        plans: what the kernel made for the row's spans (False) and for the pooled ones (True), read by every layer.
        suits_c: the attention in C can run some layer of it, where it is there and the thread has a processor to itself.
        described: what the attention in C has made of the spans, by the mask.
        static: the forward is being recorded, so it may depend on nothing but `plans`.
        masks_by_row: the model's mask functions look at what the row holds, so they get indices within it.
        positions: `(num_tokens,)`, each token's place in its text, for models that take no position ids.
    """

    spans: Sequence[SequenceSpan]
    pooled: torch.Tensor | None = None
    pooled_spans: Sequence[SequenceSpan] = ()
    layer: int = 0
    causal: bool | None = None
    wants_keys_only: bool = False
    last_keys: tuple[torch.Tensor, torch.Tensor] | None = None
    num_pruned: int = 0
    kernel: RowKernel | None = None
    plans: dict[bool, VarlenLayout] = field(default_factory=dict)
    suits_c: bool = False
    described: dict[PackedMask, Any] = field(default_factory=dict)
    static: bool = False
    masks_by_row: bool = False
    positions: torch.Tensor | None = None
