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


class LenientOutput(BaseModelOutputWithPooling):
    """A backbone's output that answers None for what only the real backbone would give (caches, memories …)."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _PooledStates(nn.Module):
    """Stands in for a backbone: gives pooled states as sequences of one token.

    A classifier's forward that takes the first token, the last token, or a mean then finds the pooled
    state, so its own head code runs on it unchanged.
    """

    def __init__(self, backbone: nn.Module, pooler: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        super().__init__()
        self.config: Any = backbone.config
        self.pooler = pooler
        self.states: torch.Tensor

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        output = self.pooler(self.states) if self.pooler is not None else None
        return LenientOutput(last_hidden_state=self.states, pooler_output=output)


def replayed_head(model: PreTrainedModel, pooler: Callable[[torch.Tensor], torch.Tensor] | None = None) -> PooledHead:
    """The head of a transformers classifier: its own forward, run on pooled states.

    Args:
        model: a `*ForSequenceClassification` whose head starts from one state a sequence.
        pooler: `(n, 1, hidden)` → `(n, hidden)`, where the backbone itself holds a pooler.

    Returns:
        A function `(n, hidden)` → logits `(n, num_labels)`.
    """
    prefix = model.base_model_prefix
    stand_in = _PooledStates(getattr(model, prefix), pooler)
    headless = copy.copy(model)
    headless._modules = {**model._modules, prefix: stand_in}

    def head(pooled: torch.Tensor) -> torch.Tensor:
        stand_in.states = pooled[:, None, :]
        ones = torch.ones(len(pooled), 1, dtype=torch.long, device=pooled.device)
        logits: torch.Tensor = headless(input_ids=ones, attention_mask=ones).logits
        return logits

    return head


def head_modules(model: PreTrainedModel, backbone: nn.Module) -> list[nn.Module]:
    """The modules of a classifier beside its backbone, and the backbone's own pooler."""
    prefix = model.base_model_prefix
    modules = [module for name, module in model.named_children() if name != prefix]
    modules += [module for name in ("pooler",) if isinstance(module := getattr(backbone, name, None), nn.Module)]
    return modules


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


def set_head_dtype(model: PreTrainedModel, backbone: nn.Module, dtype: torch.dtype) -> None:
    """Bring every head module to one dtype (vLLM's `head_dtype`, float32 by default for pooling)."""
    for module in head_modules(model, backbone):
        module.to(dtype)
