"""The options of `convert` that choose the head, and checks that they fit each other and the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..architecture import OWN_MODEL_TYPE, DecisionHead, LabelHead
from ..config import PROBLEM_TYPES, ModelConfig, find_pooling, sequence_poolings
from ..errors import ConfigError, ModelError, PluginError, nearest
from ..head_source import EXISTING, SHARED_OPTIONS, HeadSource
from ..model.loading.head_choice import headless_description, heads_for, lacks_head, token_head
from ..model.loading.source import ModelSource
from ..parsing.option_lists import parse_label_tokens, split, unescape
from ..registry import registry

ONE_LABEL = "one label cannot be single_label_classification (transformers refuses it); use regression or none."
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class HeadOptions:
    """The options of `convert` that say which head is made, under their own names; `own` are those of a head source."""

    head: str | None
    labels: Sequence[str]
    num_labels: int | None
    problem_type: str | None
    label_tokens: str | Mapping[str, Any] | None
    train: str | None
    text_field: str
    text_pair_field: str | None
    image_field: str | None
    video_field: str | None
    label_field: str
    validation_split: float
    seed: int
    bias: bool | None
    calibrate: str | None
    head_weights: str | None
    pooling: str | None
    logit_bias: float | None
    head_name: str | None
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> HeadSource:
        """The head source, once the method is known."""
        return registry().head_source(str(self.head))

    @property
    def count(self) -> int | None:
        """The number of labels, where it is known."""
        return 1 if self.source.one_label else len(self.labels) or self.num_labels

    @property
    def changes_the_head(self) -> bool:
        """Whether a head without a name would be made or changed."""
        own = (self.labels, self.num_labels, self.problem_type, self.calibrate, self.pooling, self.logit_bias)
        return self.head_name is None and (self.head not in (None, EXISTING) or any(each for each in own))

    def checked(self, options: ModelConfig, others: Sequence[str]) -> HeadOptions:
        """These options with the labels' names in full; one label and no activation for `--convert reward`.

        Args:
            others: the options of `convert` that no head source may have again.

        Raises:
            ConfigError: they contradict each other, or one is unknown.
            PluginError: the head's source is broken.
        """
        if self.head is not None:
            _refuse_taken_names(self.head, others)
        for name in self.own:
            if not registry().heads_taking(name):
                own = [each.name for source in registry().head_sources().values() for each in source.options]
                raise ConfigError(f"there is no option {name!r}.{nearest(name, [*others, *own])}")
        known = self._for_reward() if options.convert == "reward" else self
        names = _labels(known.labels, known.num_labels, known.problem_type) or options.label_overrides()
        if known.head_name is not None and not _NAME.fullmatch(known.head_name):
            raise ConfigError(f"--head-name {known.head_name!r}: use letters, digits, _ and -, the first one a letter.")
        if self.train and self.calibrate and Path(self.calibrate).resolve() == Path(self.train).resolve():
            raise ConfigError("--calibrate needs other rows than --train, which the head knows already.")
        tokens = None if known.label_tokens is None else parse_label_tokens(known.label_tokens)
        return replace(known, labels=names, label_tokens=tokens)

    def _for_reward(self) -> HeadOptions:
        if self.problem_type not in (None, "regression"):
            raise ConfigError(f"--convert reward gives one number, not {self.problem_type}; leave --problem-type out.")
        return replace(self, problem_type="regression", num_labels=self.num_labels or (None if self.labels else 1))

    def fitting(self, source: ModelSource) -> HeadOptions:
        """These options with the head's method and the pooling that a model comes to.

        Raises:
            ModelError: there is no head, and none was asked for.
            ConfigError: an option does not go with the method, the task or the adapter.
        """
        if source.task == "token_classify":
            _refuse_for_tokens(source, self)
        if self.head_name is not None and source.settings.get("pooler_config"):
            raise ConfigError(
                f"--head-name: {source.checkpoint.name} has a pooler_config of its own, which heads cannot share."
            )
        method = _method(source, self.head)
        made_by = registry().head_source(method)
        if source.task not in made_by.tasks:
            raise ConfigError(_other_task(source, method))
        self._check_given(source, method, made_by)
        if made_by.reads_lm_head and source.adapter is not None:
            source.adapter.check_output_layer()
        own = made_by.own_values(self.own)
        return replace(self, head=method, pooling=_pooling(source, self.pooling), own=own)

    def _check_given(self, source: ModelSource, method: str, made_by: HeadSource) -> None:
        """Raise `ConfigError` for an option that this head does not take, or lacks."""
        given = {
            "label_tokens": self.label_tokens,
            "train": self.train,
            "bias": None if self.calibrate else self.bias,
            "head_weights": self.head_weights,
            **self.own,
        }
        for name, value in given.items():
            if value is not None and not made_by.may_have(name):
                heads = " or ".join(registry().heads_taking(name))
                raise ConfigError(f"{_flag(name)} belongs to --head {heads}, not to {method}; leave one of them out.")
        from_tokens = token_head(source)
        if from_tokens is not None and from_tokens.method == method:  # the checkpoint names its tokens
            return
        for name in made_by.needs:
            if given.get(name) in (None, "", {}):
                own = next((f"{each.flag}: {each.help}" for each in made_by.options if each.name == name), None)
                raise ConfigError(f"--head {method} needs {(own or SHARED_OPTIONS[name]).rstrip('.')}.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refuse_taken_names(head: str, others: Sequence[str]) -> None:
    """Raise `PluginError` for a head source whose own option is called as another one is."""
    clashes = [each.flag for each in registry().head_source(head).options if each.name in others]
    if clashes:
        raise PluginError(
            f"the head {head!r} has options of its own that `vcls convert` has already: {', '.join(clashes)}; its plugin has to "
            "call them otherwise."
        )


def _other_task(source: ModelSource, method: str) -> str:
    """The message for a head that does not fit the model's task."""
    others = f"take another head (--head {heads_for(source)})"
    if source.task != "token_classify":
        return f"--head {method} labels tokens (--convert token_classify), and this model classifies texts; {others}."
    return (
        f"--head {method} gives a label a text (--convert classify), and this head labels tokens; {others}, or train "
        "one with transformers' Trainer."
    )


def _labels(labels: Sequence[str] | None, num_labels: int | None, problem_type: str | None) -> list[str]:
    names = [str(each) for each in (map(unescape, split(labels, ",")) if isinstance(labels, str) else labels or ())]
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise ConfigError(f"--problem-type {problem_type!r} is unknown; use one of {', '.join(PROBLEM_TYPES)}.")
    if len(set(names)) != len(names) or not all(name.strip() for name in names):
        raise ConfigError(f"--labels {','.join(names)}: labels must be different and not empty.")
    if num_labels is not None and num_labels < 1:
        raise ConfigError(f"--num-labels {num_labels} must be at least 1.")
    if names and num_labels not in (None, len(names)):
        raise ConfigError(f"--num-labels {num_labels} contradicts --labels, which names {len(names)}.")
    count = len(names) or num_labels
    if count == 1 and problem_type == "single_label_classification":
        raise ConfigError(ONE_LABEL)
    return names


def _refuse_for_tokens(source: ModelSource, options: HeadOptions) -> None:
    if source.backbone_config.is_encoder_decoder and not source.architecture.is_native(type(source.backbone_config)):
        raise ModelError(
            f"{source.checkpoint.name} is an encoder-decoder, and transformers has no token classifier of it: its states "
            "belong to the decoder's tokens, one behind the text's. Take an encoder."
        )
    if options.calibrate is not None:
        raise ConfigError(
            "--calibrate: temperature and biases learn from a label a text (--convert classify), and this head labels tokens."
        )
    if options.head_name is not None:
        raise ConfigError("--head-name: several heads are for classifiers of texts; a token classifier has one.")
    if options.pooling is not None:
        raise ConfigError(f"--pooling {options.pooling}: a token classifier reads every token's state; leave it out.")


def _method(source: ModelSource, head: str | None) -> str:
    if issubclass(source.architecture.classifier_class(type(source.backbone_config)), (DecisionHead, LabelHead)):
        raise ModelError(
            f"{source.checkpoint.name} has a head that reads what a request asks, and takes no other; open it as it is."
        )
    if head not in (None, EXISTING) and source.config.model_type == OWN_MODEL_TYPE:
        raise ModelError(
            f"{source.checkpoint.name} is a classifier in our own format already; make the new head from the model that it "
            "was converted from, or name this one first (--head existing --head-name NAME) and add the new one to that."
        )
    if head is not None:
        return head
    from_tokens = token_head(source)
    if from_tokens is not None:
        return from_tokens.method
    # A checkpoint that says it is a classifier is held to it when its weights are planned.
    if not source.is_classifier and (lacks_head(source) or not source.checkpoint.locations):
        raise ModelError(
            f"{headless_description(source)}, and a head is never invented; say where it comes from: --head {heads_for(source)}."
        )
    return EXISTING


def _pooling(source: ModelSource, pooling: str | None) -> str:
    if pooling is None:
        return source.pooling
    found = find_pooling(pooling)
    if found is None:
        *others, last = map(str.lower, sequence_poolings())
        raise ConfigError(f"--pooling {pooling!r} is unknown; use {', '.join(others)} or {last}.")
    return found
