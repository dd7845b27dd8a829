"""A LoRA adapter in memory, as sequences and batches name it, and which rows of a batch are whose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from .row import PackedRow


@dataclass(frozen=True, eq=False)
class LoRAAdapter:
    """An adapter in memory; prompts of the same one have the same object.

    Args:
        name: what the user calls it.
        low_rank: linear layer's path in the classifier → `(Aᵀ (in, rank), Bᵀ (rank, out), scale)`.
        model: the classifier with the adapter's head, and the common backbone.
        head: pooled states `(n, hidden)` → logits `(n, num_labels)`; None where only the whole forward can say.
        config: of `model`.
        pooler: what makes its probabilities, a `vllm_cls.model.heads.pooler.Pooler`.
    """

    name: str
    low_rank: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]
    model: PreTrainedModel
    head: Callable[[torch.Tensor], torch.Tensor] | None
    config: Any
    pooler: Any


Pieces = list[tuple[LoRAAdapter | None, slice]]


@dataclass
class AdapterRows:
    """The adapters of a batch, one a sequence, None for the model as it is."""

    adapters: Sequence[LoRAAdapter | None]
    pieces: dict[bool, Pieces] = field(default_factory=dict)

    def of_row(self, row: PackedRow | None) -> Pieces:
        """Which rows of a layer's input belong to which adapter."""
        one_each = row is None or row.last_keys is not None  # a padded batch has one adapter
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
