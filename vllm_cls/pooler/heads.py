"""Heads as modules that run on pooled states, in float32 whatever the backbone's dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..errors import ConfigError

PooledHead = Callable[[torch.Tensor], torch.Tensor]


def softcapped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """`softcap * tanh(logits / softcap)`, as Gemma 2's LM head does; unchanged where there is no cap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class FirstToken(nn.Module):
    """States `(n, length, hidden)` → those of the first tokens, `(n, hidden)`."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states[:, 0]


class LenientOutput(BaseModelOutputWithPooling):
    """A backbone's output that answers None for what only the real backbone would give (caches, memories …)."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _PooledStates(nn.Module):
    """Stands in for a backbone: gives pooled states as sequences of one token."""

    def __init__(self, config: Any, pooler: nn.Module | None) -> None:
        super().__init__()
        self.config = config
        self.pooler = pooler
        self.states: torch.Tensor

    def forward(self, *args: Any, **kwargs: Any) -> LenientOutput:
        output = self.pooler(self.states) if self.pooler is not None else None
        return LenientOutput(last_hidden_state=self.states, pooler_output=output)


class ReplayedHead(nn.Module):
    """The head of a transformers classifier: its own forward, run on pooled states.

    A forward that takes the first token, the last token, a mean or each token finds the state in a
    sequence of one token, so its own head code runs on it unchanged.

    Args:
        model: a `*ForSequenceClassification` whose head starts from one state a sequence, or a `*ForTokenClassification`.
        pooler: `(n, 1, hidden)` → `(n, hidden)`, where the backbone itself holds one. It is copied, since
            the backbone goes on running its own in its own dtype.
    """

    def __init__(self, model: PreTrainedModel, pooler: nn.Module | None = None) -> None:
        super().__init__()
        prefix = model.base_model_prefix
        self._stand_in = _PooledStates(getattr(model, prefix).config, copy.deepcopy(pooler))
        self._headless = copy.copy(model)
        self._headless._modules = {**model._modules, prefix: self._stand_in}

    @property
    def pooler(self) -> nn.Module | None:
        """The copy of the pooler that runs."""
        return self._stand_in.pooler

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """`(n, hidden)` → logits `(n, num_labels)`."""
        logits = self.of_sequences(pooled[:, None, :])
        return logits.flatten(0, 1) if logits.ndim == 3 else logits  # a token classifier's: (n, 1, num_labels)

    def of_sequences(self, states: torch.Tensor) -> torch.Tensor:
        """What the model's own forward makes of the states of whole sequences: `(n, length, hidden)` → logits."""
        self._stand_in.states = states
        ones = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        logits: torch.Tensor = self._headless(input_ids=ones, attention_mask=ones).logits
        return logits


def head_dtype(config: Any, model_dtype: torch.dtype) -> torch.dtype:
    """The dtype of the head: float32, or what the config's `head_dtype` says ("model", "float32", "bfloat16" …).

    Raises:
        ConfigError: it names no dtype.
    """
    name = str(getattr(config, "head_dtype", None) or "float32").removeprefix("torch.")
    if name == "model":
        return model_dtype
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"head_dtype={name!r} is unknown; use 'float32', 'model', 'bfloat16' or 'float16'.")
    return dtype


def set_head_dtype(model: PreTrainedModel, head: PooledHead, dtype: torch.dtype) -> None:
    """Bring the head to one dtype (vLLM's `head_dtype`, float32 by default for pooling).

    Args:
        head: a module, or a method of the classifier, and then all that stands beside its backbone is the head.
    """
    prefix = model.base_model_prefix
    beside = [module for name, module in model.named_children() if name != prefix]
    for module in [head] if isinstance(head, nn.Module) else beside:
        module.to(dtype)
