"""The heads of a loaded model: which logits belong to which head, and the outputs that it makes of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...config import labels_of
from ...errors import ConfigError, nearest
from ...pooler.activations import Activation, activation_for, probabilities_by, settled
from ...registry import registry

if TYPE_CHECKING:
    import torch

    from ...runtime.adapter import LoRAAdapter
    from .pooler import Pooler


@dataclass(frozen=True)
class RunningHead:
    """One head of a loaded model.

    Args:
        name: None for a single head without a name.
        columns: its columns of the logits of all heads.
        config: names its labels.
        pooler: makes its probabilities.
    """

    name: str | None
    columns: slice
    config: Any
    pooler: Pooler

    @functools.cached_property
    def id2label(self) -> dict[int, str]:
        return labels_of(self.config)

    @property
    def problem_type(self) -> str | None:
        problem_type: str | None = self.config.problem_type
        return problem_type

    @functools.cached_property
    def gives_probabilities(self) -> bool:
        """Whether its activation does: not where the config names an identity or its like, nor that of a regression."""
        return self._by is self.activation

    @functools.cached_property
    def activation(self) -> Activation:
        """What it makes of calibrated logits `(…, num_labels)`."""
        return settled(self.pooler.activation, len(self.id2label))

    @functools.cached_property
    def _by(self) -> Activation | None:
        return probabilities_by(self.activation, self.problem_type, len(self.id2label))

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Of its labels, by calibrated logits `(…, num_labels)`, whatever its activation is; None for a regression."""
        return None if self._by is None else self._by(logits)

    def with_adapter(self, adapter: LoRAAdapter | None) -> RunningHead:
        """The head of an adapter in place of this one."""
        return self if adapter is None else replace(self, config=adapter.config, pooler=adapter.pooler)


def running_heads(model: Any, pooler: Pooler) -> list[RunningHead]:
    """The heads of a loaded model, the default one first.

    Args:
        pooler: of the model; a head's differs in its activation.
    """
    named = getattr(model, "named_heads", None)
    if not named:
        return [RunningHead(None, slice(None), model.config, pooler)]
    heads, start = [], 0
    for each in named:
        config = each.config(model.config)
        activation = activation_for(config, registry().collect("vcls_activations"))
        columns = slice(start, start := start + len(each.labels))
        heads.append(RunningHead(each.name, columns, config, replace(pooler, activation=activation)))
    return heads


def find_head(heads: Sequence[RunningHead], name: str | None) -> RunningHead:
    """The head of this name; the first one where there is no name.

    Raises:
        ConfigError: there is no such head.
    """
    if name is None:
        return heads[0]
    known = [each.name for each in heads if each.name is not None]
    if name not in known:
        there = f"the model's heads are {', '.join(known)}" if known else "the model's head has no name"
        raise ConfigError(f"head_name={name!r} is unknown; {there}.{nearest(str(name), known)}", "head_name")
    return heads[known.index(name)]
