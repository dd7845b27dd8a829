"""A transformers classifier as a function of tensors in, logits out, which exporters can trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Traceable(nn.Module):
    """Takes the tokenizer's inputs in their order, gives logits `(num_sequences, num_labels)`."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names
        if hasattr(model.config.get_text_config(), "use_cache"):
            model.config.get_text_config().use_cache = False

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


def example(names: list[str], pad_token_id: int) -> tuple[torch.Tensor, ...]:
    """Inputs to trace with: rows of different lengths, so that no branch for "nothing is padded" is taken."""
    lengths, longest = (11, 7, 3), 11
    ids = torch.full((len(lengths), longest), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = 10 + torch.arange(length)
        mask[row, :length] = 1
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return tuple(values[name] for name in names)
