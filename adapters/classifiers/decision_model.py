"""`DecisionModel`: the base of classes whose own head answers questions by the states of several tokens."""

from __future__ import annotations

import torch

from vllm_cls.architecture import DecisionHead

from .seq_cls import SequenceClassifier


class DecisionModel(DecisionHead, SequenceClassifier):
    """Mixin; its next base is a `PreTrainedModel`, and `scores` is to be written.

    The rows that `scores` gets are the backbone's states, as float32 as the layers beside it are.
    """

    def pooled_logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """States `(n, hidden)` as they are."""
        return pooled
