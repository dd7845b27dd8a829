"""A LoRA adapter in memory, as sequences and batches name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel


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
