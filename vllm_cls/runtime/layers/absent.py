"""What stands in a model where another process holds a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


class AbsentLayer(nn.Module):
    """In a layer's place: hands the states on.

    Args:
        layer: on the meta device; what the model reads of it beside calling it stays.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, value in vars(layer).items():
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)
        self.crossing: Callable[[torch.Tensor], torch.Tensor] | None = None
        """What happens to states where they leave this process, or come to it."""
        self.absent = [(each.numel(), each.element_size()) for each in layer.parameters()]

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """States `(…, hidden)` of the same form."""
        return hidden_states if self.crossing is None else self.crossing(hidden_states)


class AbsentEmbedding(nn.Module):
    """In the place of the input embeddings: zeros `(…, hidden)` of token ids `(…)`.

    Args:
        embedding: on the meta device.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.width, self.dtype = embedding.embedding_dim, embedding.weight.dtype
        self.absent = [(embedding.weight.numel(), embedding.weight.element_size())]

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*input_ids.shape, self.width, dtype=self.dtype, device=input_ids.device)


def size_of(model: nn.Module) -> tuple[int, int]:
    """Parameters and their bytes, those that other processes hold included."""
    sizes = [(each.numel(), each.element_size()) for each in model.parameters()]
    for module in model.modules():
        if isinstance(module, AbsentLayer | AbsentEmbedding):
            sizes += module.absent
    return sum(count for count, _ in sizes), sum(count * size for count, size in sizes)


def share(number: int, rank: int, size: int) -> range:
    """Which of a number of layers a rank holds."""
    return range(number * rank // size, number * (rank + 1) // size)


def has_absent(layers: Sequence[nn.Module]) -> bool:
    """Whether another process holds some of these."""
    return any(isinstance(each, AbsentLayer) for each in layers)
