"""`as_reward_model`: a base model with the two-layer head of Qwen2.5-Math's reward models."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .seq_cls import as_seq_cls_model


class _RewardHead:
    """Mixin: `score` is Linear, ReLU, Linear, as in the code that comes with those checkpoints."""

    config: Any
    score: nn.Sequential

    def build_head(self) -> None:
        hidden = self.config.get_text_config().hidden_size
        self.num_labels = self.config.num_labels
        self.score = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, self.num_labels))

    def pooled_logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """States `(n, hidden)`, of sequences or of tokens → logits `(n, num_labels)`, in the head's dtype."""
        first: Any = self.score[0]
        logits: torch.Tensor = self.score(pooled.to(first.weight.dtype))
        return logits


def as_reward_model(model_class: type[PreTrainedModel], name: str) -> type[PreTrainedModel]:
    """The reward model of a base model's class.

    Args:
        model_class: a `*Model` whose first output is hidden states `(batch, length, hidden)`.
        name: of the class, which the config's `architectures` names.

    Returns:
        A class whose forward judges the last token, as `as_seq_cls_model`'s does.
    """
    made: type[PreTrainedModel] = _made(model_class, name)  # type: ignore[arg-type]  # classes are hashable
    return made


@functools.cache
def _made(model_class: Any, name: str) -> Any:
    base: Any = as_seq_cls_model(model_class)
    about = f"{model_class.__name__} with a reward head of two layers."
    return type(base)(name, (_RewardHead, base), {"__module__": __name__, "__doc__": about})
