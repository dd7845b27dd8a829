"""Which head a conversion is to make: what the options say, and which of them contradict each other or the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .architecture import OWN_MODEL_TYPE
from .config import PROBLEM_TYPES, ModelConfig
from .errors import ConfigError, ModelError
from .loading import heads_for, lacks_head, token_head, without_head
from .source import Source

ONE_LABEL = "one label cannot be single_label_classification (transformers refuses it); use regression or none."
# Options that belong to some heads only: giving one to another head is a contradiction.
_BELONGS = {
    "label_tokens": ("tokens", "two-way", "sequence"),
    "train": ("fit",),
    "bias": ("fit",),  # and --calibrate
    "head_weights": ("file",),
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class HeadOptions:
    """The options of `convert` that say which head is made, under their own names."""

    head: str | None
    labels: Sequence[str]
    num_labels: int | None
    problem_type: str | None
    label_tokens: str | Mapping[str, Any] | None
    train: str | None
    text_field: str
    text_pair_field: str | None
    label_field: str
    validation_split: float
    seed: int
    bias: bool | None
    calibrate: str | None
    head_weights: str | None
    pooling: str | None
    logit_bias: float | None
    head_name: str | None

    @property
    def count(self) -> int | None:
        """The number of labels, where it is known."""
        return 1 if self.head == "two-way" else len(self.labels) or self.num_labels

    @property
    def changes_the_head(self) -> bool:
        """Whether a head without a name would be made or changed."""
        own = (self.labels, self.num_labels, self.problem_type, self.calibrate, self.pooling, self.logit_bias)
        return self.head_name is None and (self.head not in (None, "existing") or any(each for each in own))

    def checked(self, options: ModelConfig) -> HeadOptions:
        """These options with the labels' names in full; one label and no activation for `--convert reward`.

        Raises:
            ConfigError: they contradict each other.
        """
        known = self._for_reward() if options.convert == "reward" else self
        names = _labels(known.labels, known.num_labels, known.problem_type) or options.label_overrides()
        if known.head_name is not None and not _NAME.fullmatch(known.head_name):
            raise ConfigError(f"--head-name {known.head_name!r}: use letters, digits, _ and -, the first one a letter.")
        if self.train and self.calibrate and Path(self.calibrate).resolve() == Path(self.train).resolve():
            raise ConfigError("--calibrate needs other rows than --train, which the head knows already.")
        return replace(known, labels=names)

    def _for_reward(self) -> HeadOptions:
        if self.problem_type not in (None, "regression"):
            raise ConfigError(f"--convert reward gives one number, not {self.problem_type}; leave --problem-type out.")
        return replace(self, problem_type="regression", num_labels=self.num_labels or (None if self.labels else 1))

    def fitting(self, source: Source) -> HeadOptions:
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
        given = {
            "label_tokens": self.label_tokens,
            "train": self.train,
            "bias": None if self.calibrate else self.bias,
            "head_weights": self.head_weights,
        }
        for name, value in given.items():
            if value is not None and method not in _BELONGS[name]:
                option, heads = name.replace("_", "-"), " or ".join(_BELONGS[name])
                raise ConfigError(f"--{option} belongs to --head {heads}, not to {method}; leave one of them out.")
        if method == "fit" and not self.train:
            raise ConfigError("--head fit needs --train FILE with labelled rows.")
        if method in ("tokens", "two-way", "sequence") and source.adapter is not None:
            source.adapter.check_output_layer()
        return replace(self, head=method, pooling=_pooling(source, self.pooling))


def _labels(labels: Sequence[str] | None, num_labels: int | None, problem_type: str | None) -> list[str]:
    names = [str(each) for each in (labels.split(",") if isinstance(labels, str) else labels or ())]
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


def _refuse_for_tokens(source: Source, options: HeadOptions) -> None:
    if source.backbone_config.is_encoder_decoder and not source.architecture.is_native(type(source.backbone_config)):
        raise ModelError(
            f"{source.checkpoint.name} is an encoder-decoder, and transformers has no token classifier of it: its states "
            "belong to the decoder's tokens, one behind the text's. Take an encoder."
        )
    if options.head == "fit" or options.calibrate is not None:
        raise ConfigError(
            "--head fit and --calibrate learn from a label a text (--convert classify), and this head labels tokens; train "
            "one with transformers' Trainer (--head random to begin with), or bring it with --head file."
        )
    if options.head_name is not None:
        raise ConfigError("--head-name: several heads are for classifiers of texts; a token classifier has one.")
    if options.pooling is not None:
        raise ConfigError(f"--pooling {options.pooling}: a token classifier reads every token's state; leave it out.")


def _method(source: Source, head: str | None) -> str:
    if head not in (None, "existing") and source.config.model_type == OWN_MODEL_TYPE:
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
            f"{without_head(source)}, and a head is never invented; say where it comes from: --head {heads_for(source)}."
        )
    return "existing"


def _pooling(source: Source, pooling: str | None) -> str:
    if pooling is None:
        return source.pooling
    if pooling.upper() not in ("CLS", "LAST", "MEAN"):
        raise ConfigError(f"--pooling {pooling!r} is unknown; use cls, last or mean.")
    return pooling.upper()
