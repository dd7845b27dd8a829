"""`as_token_cls_model`: a base model with a `score` layer on the state of each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

from vllm_cls.architecture import LinearHead
from vllm_cls.compat.transformers_calls import on_meta

from .seq_cls import LinearClassifier, class_on


class TokenClassifier(LinearClassifier):
    """Mixin: head and loss of a classifier of tokens."""

    pooling = "ALL"

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Token ids `(batch, length)` → `.logits` `(batch, length, num_labels)`, with `.loss` where labels are given."""
        hidden = self.hidden_states(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        logits = self.pooled_logits(hidden)
        loss = None if labels is None else self.loss_function(logits=logits, labels=labels, config=self.config)
        return TokenClassifierOutput(loss=loss, logits=logits)


def as_token_cls_model(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The token classifier for a base model's class; see `as_seq_cls_model` for sequences.

    Args:
        model_class: a `*Model` whose first output is hidden states `(batch, length, hidden)`.

    Returns:
        A class `*ForTokenClassification`.
    """
    return class_on(model_class, TokenClassifier, "ForTokenClassification")


def linear_parameters(
    token_class: type[PreTrainedModel], config: PreTrainedConfig, final_linear: str, linear: LinearHead
) -> Mapping[str, torch.Tensor] | None:
    """Parameters of a token classifier of transformers that compute `linear` on each state.

    None where the class has more than one linear layer behind its backbone, or cannot hold the head.
    """
    model: Any = on_meta(token_class, config)
    beside = {name: module for name, module in model.named_children() if name != model.base_model_prefix}
    final: Any = beside.pop(final_linear, None)
    if not isinstance(final, nn.Linear) or not all(
        isinstance(each, nn.Dropout | nn.Identity) for each in beside.values()
    ):
        return None
    has_bias = "bias" in dict(final.named_parameters())
    if linear.softcap is not None or linear.combine is not None or (linear.bias is not None and not has_bias):
        return None
    named = {f"{final_linear}.weight": linear.weight}
    if has_bias:
        named[f"{final_linear}.bias"] = torch.zeros(linear.num_labels) if linear.bias is None else linear.bias
    return named
