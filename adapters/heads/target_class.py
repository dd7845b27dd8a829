"""The class that can hold a head without loss: transformers' own where possible, else one of ours.

Plain transformers would drop a bias that its decoder classes do not have with a warning, or invent a
pooler. So what its class cannot compute is never written under that class's name.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

from vllm_cls.architecture import OWN_MODEL_TYPE, Architecture, HeadResult, LinearHead, Target
from vllm_cls.errors import ConfigError

from ..classifiers.named_heads import ACTIVATION_KEYS
from ..classifiers.own_type import VclsConfig, VclsForSequenceClassification, VclsForTokenClassification
from ..classifiers.seq_cls import HeadShape, LinearClassifier, head_tensors, own_settings
from ..classifiers.sequence_settings import sequence_settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_OWN_CLASSES: dict[str, type[PreTrainedModel]] = {
    "classify": VclsForSequenceClassification,
    "token_classify": VclsForTokenClassification,
}


# What a config says of the whole classifier, not of the backbone that is to be inside.
_OF_THE_CLASSIFIER = ("id2label", "label2id", "problem_type", "head_dtype", "use_sep_token", *ACTIVATION_KEYS)


def target(architecture: Architecture, config: PreTrainedConfig, result: HeadResult, pooling: str) -> Target:
    """Class, config and parameters for a head on the backbone that `config` describes.

    Args:
        architecture: of the backbone.
        config: the source's; it is copied, not changed.
        result: the head and its labels.
        pooling: "CLS", "LAST", "MEAN" or a plugin's; "ALL" for a head on each token.

    Raises:
        ConfigError: the head was made for another pooling than the one asked for.
    """
    config = copy.deepcopy(config)
    head = result.head
    if head.sequences is not None:
        return sequence_target(config, result)
    if config.model_type == OWN_MODEL_TYPE:
        return _own_type(config, result, pooling, _OWN_CLASSES[architecture.task])
    classifier_class = architecture.classifier_class(type(config))
    default = architecture.pooling(config)
    ours = issubclass(classifier_class, LinearClassifier)
    if architecture.own_type:
        return _wrapped(
            config, _as_linear(result), pooling, _OWN_CLASSES[architecture.task], of=config.architectures[0]
        )
    if head.linear is None:
        if pooling != (own_settings(config).get("pooling", default) if ours else default):
            raise ConfigError(_other_pooling(classifier_class.__name__, result, default, pooling))
        _set_labels(config, result)
        config.architectures = [classifier_class.__name__]
        return Target(classifier_class, config, head.tensors)
    if ours:
        _set_labels(config, result)
        _set_form(config, head.linear, pooling)
        config.architectures = [classifier_class.__name__]
        return Target(classifier_class, config, head_tensors(head.linear))
    if pooling == default:
        tensors = architecture.express(config, head.linear, on_features=head.on_features)
        if tensors is not None:
            _set_labels(config, result)
            config.architectures = [classifier_class.__name__]
            return Target(classifier_class, config, tensors)
    return _wrapped(config, result, pooling, _OWN_CLASSES[architecture.task])


def _other_pooling(name: str, result: HeadResult, made_for: str, requested: str) -> str:
    return (
        f"the {result.head.method} head of {name} was made for {made_for} pooling, not {requested}; leave --pooling out, or "
        "make a new head (--head fit)."
    )


def _as_linear(result: HeadResult) -> HeadResult:
    """A head of one `score` layer as the linear map that it is."""
    if result.head.linear is not None:
        return result
    tensors = result.head.tensors or {}
    if set(tensors) != {"score.weight"}:
        raise ConfigError(f"the {result.head.method} head is not score.weight alone; use --head fit, tokens or random.")
    linear = LinearHead(tensors["score.weight"])
    return dataclasses.replace(result, head=dataclasses.replace(result.head, linear=linear, tensors=None))


def _wrapped(
    config: PreTrainedConfig, result: HeadResult, pooling: str, own_class: type[PreTrainedModel], of: str | None = None
) -> Target:
    """Our own model type round the backbone's config.

    Args:
        of: the class that the backbone is part of, where the config alone does not tell.
    """
    assert result.head.linear is not None
    outer = outer_config(config, result)
    if of:
        outer.vcls = {**own_settings(outer), "backbone_of": of}
    _set_form(outer, result.head.linear, pooling)
    outer.architectures = [own_class.__name__]
    return Target(own_class, outer, head_tensors(result.head.linear))


def outer_config(config: PreTrainedConfig, result: HeadResult) -> VclsConfig:
    """A config of our own type round the backbone's; `config` itself where it is one."""
    outer: VclsConfig = config
    if config.model_type != OWN_MODEL_TYPE:
        settings = own_settings(config)
        if settings:
            del config.vcls
        outer = VclsConfig(backbone_config=config, vcls=dict(settings))
        config._name_or_path = ""  # where it was on this machine is nobody's business
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "dtype"):
            setattr(outer, name, getattr(config.get_text_config(), name, None))
        for name in _OF_THE_CLASSIFIER:
            if hasattr(config, name):
                setattr(outer, name, copy.deepcopy(getattr(config, name)))
    _set_labels(outer, result)
    return outer


def sequence_target(config: PreTrainedConfig, result: HeadResult) -> Target:
    """The target of a head of label texts: our own model type, which keeps the LM head."""
    head = result.head.sequences
    assert head is not None
    outer = outer_config(config, result)
    outer.vcls = {**own_settings(outer), "pooling": "LAST", "sequences": sequence_settings(head)}
    outer.architectures = [VclsForSequenceClassification.__name__]
    names = {head.weight: "lm_head.weight", head.bias: "lm_head.bias"}
    moved = {stored: name for stored, name in names.items() if stored is not None}
    return Target(VclsForSequenceClassification, outer, None, moved)


def _own_type(config: Any, result: HeadResult, pooling: str, own_class: type[PreTrainedModel]) -> Target:
    """A checkpoint of our own type, with its head or a new one."""
    stored = own_settings(config).get("pooling", "LAST")
    if result.head.linear is None:
        if pooling != stored:
            raise ConfigError(_other_pooling(config.architectures[0], result, stored, pooling))
        _set_labels(config, result)
        kept = own_settings(config).get("lm_head") or {}  # of named heads
        return Target(own_class, config, result.head.tensors, {name: name for name in kept})
    _set_labels(config, result)
    _set_form(config, result.head.linear, pooling)
    return Target(own_class, config, head_tensors(result.head.linear))


def _set_labels(config: PreTrainedConfig, result: HeadResult) -> None:
    # An adapter's head with as many labels is the model's own, trained on.
    own = ("existing", "lora") if len(result.labels) == config.num_labels else ("existing",)
    if result.labels:
        config.id2label = dict(enumerate(result.labels))
        config.label2id = {label: index for index, label in enumerate(result.labels)}
    if result.head.method not in own:  # what the old head's numbers meant does not hold for a new one
        config.problem_type = None
        for name in ACTIVATION_KEYS:
            if hasattr(config, name):
                delattr(config, name)
    if result.problem_type is not None:
        config.problem_type = result.problem_type


def _set_form(config: Any, head: LinearHead, pooling: str) -> None:
    config.vcls = {**own_settings(config), "pooling": pooling, "head": HeadShape.from_head(head).to_dict()}
