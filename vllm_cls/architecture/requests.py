"""What hooks are asked, and what they answer: a head, its class, a calibration, a conversion that is to be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ..checkpoint.files import Checkpoint
    from ..checkpoint.peft_adapter import PeftAdapter
    from .family import Architecture
    from .heads import Head


@dataclass(frozen=True)
class HeadRequest:
    """The arguments of a head source.

    Args:
        checkpoint: the model's files; tensors are read from it one by one.
        config: the model's config, with `num_labels`, `id2label` and `problem_type` set where they are known.
        architecture: the architecture that claims the model.
        tokenizer: the model's tokenizer, or None.
        labels: label names, in the order of their indices; empty where only a number is known.
        problem_type: as in transformers, or None.
        pooling: "CLS", "LAST", "MEAN" or a plugin's, or "ALL" for a head on each token.
        options: the options of the command that the source takes (`label_tokens`, `seed` …), and its own; see `HeadSource`.
            `prompts` and `targets` are those of labelled rows: indices of `labels`, a 0 or 1 for each label (multi-label), or
            numbers (regression).
        tokenize: `(prompt, suffix="")` → token ids as the model will see them, with `suffix` written behind the prompt.
        states: prompts → `(pooled states, features)`, each `(num_prompts, hidden)` float32; runs the model.
    """

    checkpoint: Checkpoint
    config: PreTrainedConfig
    architecture: Architecture
    tokenizer: PreTrainedTokenizerBase | None
    labels: Sequence[str]
    problem_type: str | None
    pooling: str
    options: Mapping[str, Any]
    tokenize: Callable[..., list[int]]
    states: Callable[[Sequence[Any]], tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class HeadResult:
    """A head with the labels it is for."""

    head: Head
    labels: Sequence[str]
    problem_type: str | None


@dataclass(frozen=True)
class Target:
    """A classifier with a given head: its class, its config, the head's parameters.

    Args:
        classifier_class: transformers' own class where that computes exactly this, else one of ours.
        config: for that class.
        head_tensors: by their names in that class; None where the checkpoint's own head stays.
        moved: tensors of the checkpoint that are parts of the head, by its names → their names in that class; those
            that the class has no place for are kept beside it.
    """

    classifier_class: type[PreTrainedModel]
    config: PreTrainedConfig
    head_tensors: Mapping[str, torch.Tensor] | None
    moved: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NamedHeadRequest:
    """A named head that is added to a model.

    Args:
        name: not that of another one.
        head: its source and labels.
        alone: what a classifier with this head alone would be.
        made_for: what the head was made from: a model without the other heads.
        config: of the checkpoint that is to be written from, with the other heads, if any, in it.
        shared: settings that the heads have in common, for their prompts.
    """

    name: str
    head: HeadResult
    alone: Target
    made_for: HeadRequest
    config: PreTrainedConfig
    shared: Mapping[str, Any]


@dataclass(frozen=True)
class ScoreTemplate:
    """The prompt that a causal reranker was trained with.

    Args:
        name: what `vcls inspect` shows and `score_template=` takes.
        text: Jinja, with `query`, `document` and, where the model takes one, `instruction`.
        instruction: used where a request gives none.
        matches: `(config, name of the model)` → whether the model presents itself as one that wants this template.
    """

    name: str
    text: str
    instruction: str | None
    matches: Callable[[PreTrainedConfig, str], bool]


@dataclass(frozen=True)
class CalibrationRequest:
    """A head, with its logits of labelled rows.

    Args:
        checkpoint: the model's files, for a head that is in them.
        architecture: the architecture that claims the model.
        config: the model's config.
        result: the head as it is.
        target: the class and config that hold it.
        logits: of the rows, `(num_rows, num_labels)` float32.
        targets: their labels: indices (of one label alone, 1 where it is true), or a 0 or 1 for each label (multi-label).
        seed: of the folds.
        intercept: whether each label may get a bias beside the common temperature.
        rows_name: the file's name, for the model card.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    config: PreTrainedConfig
    result: HeadResult
    target: Target
    logits: torch.Tensor
    targets: Sequence[Any]
    seed: int
    intercept: bool
    rows_name: str


@dataclass(frozen=True)
class ConversionPlan:
    """A conversion that is decided and not yet written.

    Args:
        checkpoint: the source's files.
        config: the config to write; its class says which classifier class opens it.
        classifier_class: the class that the written checkpoint opens as.
        head_tensors: parameters to write besides the source's, by their names in `classifier_class`;
            None keeps the head that the source has.
        moved: tensors of the source that become parts of the head, by their names there → in `classifier_class`.
        out: the folder to make.
        card: the text of the model card; `files` are the texts of further files, by their names.
        tokenizer: saved instead of copying the source's tokenizer files, or None.
        dtype: of the backbone's weights, as in "bfloat16"; None keeps the source's.
        adapter: a LoRA adapter to merge into the source's weights, or None.
        max_shard_size: in bytes; a weight file of the source that is larger is split.
        link: hard-link files that need no change instead of copying them.
        overwrite: replace the checkpoint that `out` holds.
        dry_run: check and plan everything, write nothing.
    """

    checkpoint: Checkpoint
    config: PreTrainedConfig
    classifier_class: type[PreTrainedModel]
    head_tensors: Mapping[str, torch.Tensor] | None
    out: Path
    card: str
    files: Mapping[str, str] = field(default_factory=dict)
    moved: Mapping[str, str] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None
    dtype: str | None = None
    adapter: PeftAdapter | None = None
    max_shard_size: int = 5 * 10**9
    link: bool = False
    overwrite: bool = False
    dry_run: bool = False
