"""Heads stored in a checkpoint: as a linear map, and with their last layer rescaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vllm_cls.architecture import OWN_MODEL_TYPE, Architecture, Head, LinearHead, rescaled_bias
from vllm_cls.compat.transformers_calls import on_meta

from ..classifiers.seq_cls import HeadShape, SequenceClassifier

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from vllm_cls.checkpoint.files import Checkpoint

_OWN_PARTS = ("score.weight", "score.bias", "combine.weight", "combine.bias")


@dataclass(frozen=True)
class StoredHead:
    """The last linear layer of a stored head, with its names and values.

    Args:
        linear: the whole head, where nothing but linear layers stands between pooled state and logits; else None.
        names: the last layer's weight and, where the class has one, bias, by their names in the class.
        tensors: their values.
    """

    linear: LinearHead | None
    names: tuple[str, str | None]
    tensors: Mapping[str, torch.Tensor]


def stored_head(
    architecture: Architecture,
    config: PreTrainedConfig,
    classifier_class: type[PreTrainedModel],
    head: Head,
    checkpoint: Checkpoint,
) -> StoredHead | None:
    """The last layer of a head that is in the checkpoint, or given under the class's own names; None if not found.

    Args:
        config: for `classifier_class`.
        head: `head.linear` is None.
    """
    own = config.model_type == OWN_MODEL_TYPE
    final = "score" if own else architecture.final_linear
    given = dict(head.tensors or {})

    def tensor(name: str) -> torch.Tensor | None:
        if name in given:
            return given[name].float()
        return checkpoint.tensor(name) if name in checkpoint.locations else None

    weight, bias = tensor(f"{final}.weight"), tensor(f"{final}.bias")
    if weight is None:
        return None
    if own or issubclass(classifier_class, SequenceClassifier):
        parts = {name: tensor(name) for name in _OWN_PARTS}
        whole = LinearHead(
            weight, bias, HeadShape.from_config(config).softcap, parts["combine.weight"], parts["combine.bias"]
        )
        return StoredHead(whole, (f"{final}.weight", None), {})
    model = on_meta(classifier_class, config)
    names = {name for name, _ in model.named_parameters()}
    beside = {name for name in names if not name.startswith(f"{model.base_model_prefix}.")}
    linear = LinearHead(weight, bias) if final == "score" and beside <= {"score.weight", "score.bias"} else None
    has_bias = f"{final}.bias" in names
    found = {f"{final}.weight": weight} | ({f"{final}.bias": bias} if has_bias and bias is not None else {})
    return StoredHead(linear, (f"{final}.weight", f"{final}.bias" if has_bias else None), found)


def scaled_tensors(stored: StoredHead, scale: float, offset: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The last layer's parameters for logits `scale * logits + offset`, by their names in the class."""
    weight_name, bias_name = stored.names
    changed = {weight_name: stored.tensors[weight_name] * scale}
    if bias_name is not None:
        bias = rescaled_bias(stored.tensors.get(bias_name), scale, offset)
        changed |= {} if bias is None else {bias_name: bias}
    return changed
