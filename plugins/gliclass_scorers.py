"""How GLiClass pools a text's states, and the scorers that compare a text with its labels; parameters as in its checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

POOLING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "first": lambda states: states[0],
    "last": lambda states: states[-1],
    "avg": lambda states: states.mean(0),
    "sum": lambda states: states.sum(0),
    "max": lambda states: states.amax(0),
    "rms": lambda states: states.square().mean(0).sqrt(),
    "abs_max": lambda states: states.abs().amax(0),
    "abs_avg": lambda states: states.abs().mean(0),
    "pass": lambda states: states,
}
"""A text's states `(num_tokens, hidden)` → one `(hidden,)`; "pass" leaves them, for a scorer that reads all."""


def _mlp(sizes: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


class Dot(nn.Module):
    """Every scorer: a text `(hidden,)` and labels `(num_labels, hidden)` → `(num_labels,)`."""

    def __init__(self, config: Any) -> None:
        super().__init__()

    def forward(self, text: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return labels @ text


class WeightedDot(nn.Module):
    """Two projections of each, the second ones multiplied, and a layer on all three."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size = config.hidden_size
        self.proj_text, self.proj_label = nn.Linear(size, 2 * size), nn.Linear(size, 2 * size)
        self.out_mlp = nn.Sequential(
            nn.Linear(3 * size, 4 * size), nn.Identity(), nn.ReLU(), nn.Linear(4 * size, 1)
        )  # the second is a dropout where it is trained

    def forward(self, text: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        own, factor = self.proj_text(text).chunk(2, dim=-1)
        of_labels, others = self.proj_label(labels).chunk(2, dim=-1)
        joined = torch.cat([own.expand_as(of_labels), of_labels, factor * others], dim=-1)
        scores: torch.Tensor = self.out_mlp(joined)[:, 0]
        return scores


class Mlp(nn.Module):
    """Layers on both side by side."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.mlp = _mlp((2 * config.hidden_size, 256, 128, 1), nn.ReLU)

    def forward(self, text: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.mlp(torch.cat([text.expand_as(labels), labels], dim=-1))[:, 0]
        return scores


class Hopfield(nn.Module):
    """Each label gets what it attends to of the text, by a softmax over the labels; then layers on it."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, size, bias=False) for _ in range(3))
        self.mlp = _mlp((size, 256, 128, 1), nn.ReLU)

    def forward(self, text: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weights = (4 * self.q_proj(labels) @ self.k_proj(text)).softmax(0)
        scores: torch.Tensor = self.mlp(labels + weights[:, None] * self.v_proj(text))[:, 0]
        return scores


class CrossAttention(nn.Module):
    """Labels attend to all tokens of the text `(num_tokens, hidden)`; then layers on what they get and on themselves."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.scorer_mlp_hidden_size
        self.num_heads = config.scorer_num_heads
        self.q_norm, self.kv_norm, self.norm = (nn.LayerNorm(size) for _ in range(3))
        self.q, self.k, self.v, self.out = (nn.Linear(size, size) for _ in range(4))
        self.score_mlp = _mlp((2 * size, inner, inner // 2, 1), nn.GELU)

    def forward(self, text: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            each.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
            for each in (self.q(self.q_norm(labels)), self.k(self.kv_norm(text)), self.v(text))
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)
        scores: torch.Tensor = self.score_mlp(torch.cat([self.norm(self.out(attended)), labels], dim=-1))[:, 0]
        return scores


SCORERS: dict[str, type[nn.Module]] = {
    "simple": Dot,
    "weighted-dot": WeightedDot,
    "mlp": Mlp,
    "hopfield": Hopfield,
    "cross-attn": CrossAttention,
}
