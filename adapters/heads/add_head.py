"""Adds a named head to a classifier of our own model type."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig

from vllm_cls.architecture import OWN_MODEL_TYPE, HeadRequest, LinearHead, NamedHeadRequest, Target
from vllm_cls.compat.transformers_calls import without_memory
from vllm_cls.config import labels_of
from vllm_cls.errors import ConfigError, ModelError
from vllm_cls.pooler.methods import named
from vllm_cls.registry import registry

from ..classifiers.families import native_class
from ..classifiers.named_heads import ACTIVATION_KEYS, NamedHead, OwnPart, named_heads
from ..classifiers.own_type import VclsConfig, VclsForSequenceClassification
from ..classifiers.seq_cls import HeadShape, head_tensors, own_settings
from .linear_heads import stored_head
from .lm_head import is_embeddings, projection_of, tensors_of
from .target_class import outer_config

_LABELS = ("id2label", "label2id", "problem_type")
_LENGTH = 5  # tokens of the sequence on which a class's own head is tried


def add_head(request: NamedHeadRequest) -> Target:
    """The classifier with one more head; the config has the labels of the first one.

    The LM head, where it is not the embeddings, stays in the checkpoint, so that heads can be made of it later.

    Raises:
        ConfigError: there is a head of that name.
        ModelError: the head cannot run on pooled states.
    """
    others = named_heads(request.config)
    if request.name in [each.name for each in others]:
        raise ConfigError(f"--head-name {request.name}: the model has a head of that name; choose another.")
    config = _outer(request, first=not others)
    head, tensors = _head(request, config)
    settings: dict[str, Any] = {"lm_head": {}, "pooler": _has_pooler(request.made_for), **own_settings(config)}
    if not others:
        settings["head_method"] = head.method
        settings["lm_head"] = {new: old for old, new in _lm_head(request).items()}
    moved = {name if others else old: name for name, old in settings["lm_head"].items()}
    settings |= request.shared
    settings["heads"] = [*(each.to_dict() for each in others), head.to_dict()]
    config.vcls = settings
    named = {f"heads.{len(others)}.{name}": tensor for name, tensor in tensors.items()}
    return Target(VclsForSequenceClassification, config, named, moved)


def _outer(request: NamedHeadRequest, *, first: bool) -> VclsConfig:
    """The config, its labels those of the first head."""
    config: VclsConfig = copy.deepcopy(request.config)
    if not first:
        return config
    config = outer_config(config, request.head)
    alone = request.alone.config
    for name in (*_LABELS, *ACTIVATION_KEYS):
        if hasattr(alone, name):
            setattr(config, name, copy.deepcopy(getattr(alone, name)))
        elif hasattr(config, name):
            delattr(config, name)
    config.vcls = {name: value for name, value in own_settings(config).items() if name not in ("head", "sequences")}
    config.architectures = [VclsForSequenceClassification.__name__]
    return config


def _head(request: NamedHeadRequest, config: VclsConfig) -> tuple[NamedHead, dict[str, torch.Tensor]]:
    """The head as the config keeps it, and its tensors by their names in its part."""
    alone = request.alone.config
    head = NamedHead(
        name=request.name,
        method=request.head.head.method,
        labels=list(labels_of(alone).values()),
        problem_type=alone.problem_type,
        activation={key: getattr(alone, key) for key in ACTIVATION_KEYS if getattr(alone, key, None)},
        description=request.head.head.description,
    )
    sequences = own_settings(alone).get("sequences")
    if sequences is not None:
        return _with(head, sequences=sequences), {}
    linear = _linear(request)
    if linear is not None:
        return _with(head, linear=HeadShape.from_head(linear).to_dict()), head_tensors(linear)
    head = _with(head, own=True)
    return head, _own_tensors(request, head.config(config))


def _with(head: NamedHead, **form: Any) -> NamedHead:
    return NamedHead(**{**head.to_dict(), **form})


def _linear(request: NamedHeadRequest) -> LinearHead | None:
    """The head as a linear map of the pooled state, where it is one."""
    head, made_for = request.head.head, request.made_for
    if head.linear is not None:
        return None if head.on_features else head.linear
    stored = stored_head(
        made_for.architecture, request.alone.config, request.alone.classifier_class, head, made_for.checkpoint
    )
    return None if stored is None else stored.linear


def _own_tensors(request: NamedHeadRequest, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """The parameters of transformers' own head: those of the new head, and of what is trained in the checkpoint."""
    own_class, made_for = request.alone.classifier_class, request.made_for
    name = own_class.__name__
    if own_class is not native_class(type(config)) or not _runs_on_pooled(config, made_for.pooling):
        raise ModelError(
            f"--head-name: what the head of {name} reads is more than the pooled state of a text, so it cannot be one of "
            "several; make one with --head fit, tokens or file."
        )
    with torch.device("meta"):
        part = OwnPart(config)
    tensors_of_target, found = dict(request.alone.head_tensors or {}), {}
    for parameter, inside in part.names.items():
        stem = parameter.removeprefix(f"{own_class.base_model_prefix}.")
        stored = next((each for each in (parameter, stem) if each in made_for.checkpoint.locations), None)
        if parameter not in tensors_of_target and stored is None:
            raise ModelError(f"{made_for.checkpoint.name} lacks {parameter}, which {name} needs; make a new head.")
        found[inside] = (
            tensors_of_target[parameter] if parameter in tensors_of_target else made_for.checkpoint.tensor(str(stored))
        )
    return found


def _runs_on_pooled(config: PreTrainedConfig, pooling: str) -> bool:
    """Whether the head gives the same logits on the pooled state as within transformers' own forward; found by running both."""
    part = OwnPart(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(0, 0.1, generator=generator)
        states = torch.randn(1, _LENGTH, config.get_text_config().hidden_size, generator=generator)
        pooled = named(pooling, registry().pooling_methods())(states[0], torch.tensor([0]), torch.tensor([_LENGTH]))
        try:
            return torch.allclose(part.replayed.of_sequences(states), part(pooled), rtol=1e-4, atol=1e-5)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            return False


def _has_pooler(request: HeadRequest) -> bool:
    """Whether the checkpoint has the pooler of its backbone, which later heads may use."""
    if request.config.model_type == OWN_MODEL_TYPE:
        return False
    with without_memory("the backbone cannot be made from config.json", request.config), torch.device("meta"):
        backbone = AutoModel.from_config(copy.deepcopy(request.config))
    pooler = getattr(backbone, "pooler", None)
    names = [f"pooler.{name}" for name, _ in pooler.named_parameters()] if isinstance(pooler, torch.nn.Module) else []
    stored = {each.removeprefix(f"{backbone.base_model_prefix}.") for each in request.checkpoint.locations}
    return bool(names) and stored.issuperset(names)


def _lm_head(request: NamedHeadRequest) -> dict[str, str]:
    """The LM head's tensors in the checkpoint, by their names there → the names that they are kept under."""
    made_for = request.made_for
    if made_for.config.model_type == OWN_MODEL_TYPE:
        return {name: name for name in ("lm_head.weight", "lm_head.bias") if name in made_for.checkpoint.locations}
    if made_for.pooling != "LAST":
        return {}
    try:
        projection = projection_of(made_for)
        weight, bias = tensors_of(made_for, projection)
    except ModelError:  # it has none, or one that no head can be made of
        return {}
    if is_embeddings(made_for, projection):
        return {}
    return {weight: "lm_head.weight"} | ({bias: "lm_head.bias"} if bias is not None else {})
