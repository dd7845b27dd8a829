"""A random head, initialised from a seed as transformers does; only made when asked for by name."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from vllm_cls.architecture import Head, HeadRequest, HeadResult
from vllm_cls.compat.transformers_calls import on_meta
from vllm_cls.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _classifier_on_meta(request: HeadRequest, num_labels: int) -> PreTrainedModel:
    config = copy.deepcopy(request.config)
    config.num_labels = num_labels
    return on_meta(request.architecture.classifier_class(type(config)), config)


def _head_names(request: HeadRequest, model: PreTrainedModel) -> list[str]:
    """Names of the parameters outside the backbone, and of its pooler where the checkpoint has no trained one."""
    prefix, final = model.base_model_prefix, request.architecture.final_linear
    described = any(name == f"{final}.weight" for name, _ in model.named_parameters())
    here = set(request.checkpoint.locations)
    names = []
    for name, _ in model.named_parameters():
        if not name.startswith(f"{prefix}."):
            # Of a head that no plugin describes, nothing is kept: which layer is the last is not known.
            trained_inside = described and name in here and not name.startswith(f"{final}.")
            names += [] if trained_inside else [name]
        elif name.startswith(f"{prefix}.pooler.") and name not in here and name.removeprefix(f"{prefix}.") not in here:
            names.append(name)
    return names


def head_parameters(request: HeadRequest, num_labels: int) -> dict[str, torch.Tensor]:
    """The head's parameters by name, on the meta device: what a head file has to hold."""
    model = _classifier_on_meta(request, num_labels)
    return {name: model.get_parameter(name) for name in _head_names(request, model)}


def random_head(request: HeadRequest) -> HeadResult:
    """A head drawn from `seed`; the same seed gives the same head.

    Raises:
        ConfigError: neither labels nor their number are known.
    """
    num_labels = len(request.labels) or request.options.get("num_labels")
    if not num_labels:
        raise ConfigError("--head random needs --labels or --num-labels.")
    seed = request.options.get("seed") or 0
    if not isinstance(seed, int):
        raise ConfigError(f"--seed {seed!r} is not a whole number.")
    model = _classifier_on_meta(request, num_labels)
    names = _head_names(request, model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path in sorted({name.rpartition(".")[0] for name in names}):
            module = model.get_submodule(path).to_empty(device="cpu", recurse=False)
            model._init_weights(module)
    tensors = {name: model.get_parameter(name).detach().clone() for name in names}
    labels = list(request.labels) or [f"LABEL_{index}" for index in range(num_labels)]
    description = f"A random head (seed {seed}): its answers mean nothing until it is trained."
    return HeadResult(Head("random", tensors=tensors, description=description), labels, request.problem_type)
