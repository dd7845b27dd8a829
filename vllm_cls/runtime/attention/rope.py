"""Rotary variants whose result depends on the longest text of a batch.

transformers recomputes their frequencies from the highest position it sees: LongRoPE switches between
two sets at `original_max_position_embeddings`, dynamic NTK grows with the length and keeps what it grew
to. So that a result does not depend on the batch, lengths on both sides of the switch never share one,
and what grows runs alone from a fresh state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class RopeRule:
    """How lengths may share a batch.

    Args:
        switch: the length above which frequencies differ, or None where none do.
        alone: above it every sequence runs alone.
    """

    switch: int | None = None
    alone: bool = False

    def key(self, length: int) -> int:
        """Sequences share a batch only if their keys are equal; -1 means "runs alone"."""
        if self.switch is None or length <= self.switch:
            return 0
        return -1 if self.alone else 1


def rope_rule(config: PreTrainedConfig) -> RopeRule:
    """The rule for a model's config; the strictest one where layers differ."""
    text = config.get_text_config()
    rules = [_rule(each, text) for each in _rope_parameters(text)]
    switches = [rule for rule in rules if rule.switch is not None]
    return min(switches, key=lambda rule: (not rule.alone, rule.switch), default=RopeRule())


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """The rotary settings: one dict, or one a layer type."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(parameters, dict):
        return []
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]


def _rule(parameters: dict[str, Any], config: Any) -> RopeRule:
    kind = parameters.get("rope_type", parameters.get("type"))
    original = (
        parameters.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or getattr(config, "max_position_embeddings", None)
    )
    if kind == "longrope":
        return RopeRule(original)
    return RopeRule(original, alone=True) if kind == "dynamic" else RopeRule()


def reset_grown_frequencies(model: torch.nn.Module) -> None:
    """Put dynamic rotary modules back to the state in which the model was loaded."""
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached") and hasattr(module, "original_inv_freq"):
            rotary: Any = module
            original = rotary.original_inv_freq.to(rotary.inv_freq.device).clone()
            rotary.register_buffer("inv_freq", original, persistent=False)
            rotary.max_seq_len_cached = rotary.original_max_seq_len
