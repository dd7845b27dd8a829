"""The head of a LoRA adapter, in a classifier that shares its backbone with the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...checkpoint.peft_adapter import LowRank, PeftAdapter
from ...errors import ModelError


def with_head(
    model: PreTrainedModel, saved: Mapping[str, torch.Tensor], low_rank: Mapping[str, LowRank]
) -> PreTrainedModel:
    """A classifier with another head, which shares the backbone of `model`.

    Args:
        saved: the head's parameters by name; a linear layer may have another number of outputs.
        low_rank: what is added to linear layers of the head, by path.

    Raises:
        ModelError: a shape does not fit.
    """
    made = _copy_of_head(model)
    for name, tensor in saved.items():
        path, _, kind = name.rpartition(".")
        module: Any = made.get_submodule(path)
        if isinstance(module, nn.Linear) and tensor.shape[-1 if kind == "bias" else 0] != module.out_features:
            rows = tensor.shape[-1 if kind == "bias" else 0]
            biased = module.bias is not None
            module = nn.Linear(module.in_features, rows, biased, device=module.weight.device, dtype=module.weight.dtype)
            if not {f"{path}.weight", *([f"{path}.bias"] if biased else [])} <= set(saved):
                raise ModelError(f"the adapter's {path} has {rows} outputs, but is not whole; train it again.")
            parent, _, last = path.rpartition(".")
            setattr(made.get_submodule(parent), last, module)
        parameter = module.get_parameter(kind)
        if parameter.shape != tensor.shape:
            raise ModelError(f"the adapter's {name} is {tuple(tensor.shape)}, the model's {tuple(parameter.shape)}.")
        parameter.data = tensor.to(parameter.device, parameter.dtype)
    for path, each in low_rank.items():
        layer = made.get_submodule(path)
        weight = layer.get_parameter("weight")
        weight.data = each.merged(weight.data.cpu(), transposed=isinstance(layer, Conv1D)).to(
            weight.device, weight.dtype
        )
    return made


def _copy_of_head(model: PreTrainedModel) -> PreTrainedModel:
    """A model with the same backbone, and copies of all other modules and of the pooler."""
    prefix = model.base_model_prefix
    made, backbone = copy.copy(model), getattr(model, prefix)
    made._modules = {name: child if name == prefix else copy.deepcopy(child) for name, child in model._modules.items()}
    if isinstance(getattr(backbone, "pooler", None), nn.Module):
        inner = copy.copy(backbone)
        inner._modules = {**backbone._modules, "pooler": copy.deepcopy(backbone.pooler)}
        made._modules[prefix] = inner
    return made


def labelled(config: Any, stored: PeftAdapter, count: int) -> Any:
    """A copy of a config with an adapter's labels.

    What the old head's numbers meant does not hold for another number of them.
    """
    config = copy.deepcopy(config)
    labels = stored.labels(count)
    if count != config.num_labels:
        config.problem_type = None
        for name in ("sentence_transformers", "sbert_ce_default_activation_function"):
            if hasattr(config, name):
                delattr(config, name)
        labels = labels or [f"LABEL_{index}" for index in range(count)]
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    if stored.config.get("problem_type"):
        config.problem_type = stored.config["problem_type"]
    return config
