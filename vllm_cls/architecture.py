"""`Architecture`, which plugins subclass, and the values that the core and the adapters exchange.

`Architecture` is the heart of a plugin: subclass it, set `name` and what it matches, override what
differs. The defaults suit an encoder or decoder that keeps transformers' conventions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .decisions.heads import DecisionHead as DecisionHead
from .decisions.heads import LabelHead as LabelHead
from .decisions.heads import LogitsAtMark as LogitsAtMark
from .decisions.heads import ReadSpan as ReadSpan
from .errors import PluginError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from .checkpoint.files import Checkpoint
    from .checkpoint.peft_adapter import PeftAdapter

OWN_MODEL_TYPE = "vcls"
"""`model_type` of a classifier that transformers' own classes cannot express; plain transformers refuses it."""
CLASSIFIERS = {"classify": "ForSequenceClassification", "token_classify": "ForTokenClassification"}
"""How the names of transformers' classifier classes end, by what they do."""
DECISIONS = "ForDecision"
"""How those of decision models end, whose heads answer typed questions."""
REWARDS = ("ForRewardModel", "ForProcessRewardModel")
"""How those of reward models end, whose classes transformers does not have."""


@dataclass(frozen=True)
class LinearHead:
    """A head that is linear in the pooled state, with what an LM head may add.

    `logits = combine @ cap(weight @ state + bias) + offset`, where `cap(x) = softcap * tanh(x / softcap)`.

    Args:
        weight: `(num_rows, hidden)`, float32.
        bias: `(num_rows,)` or None.
        softcap: the LM head's soft cap (Gemma 2), or None.
        combine: `(num_labels, num_rows)`, or None where the rows are the labels.
        offset: `(num_labels,)`, only beside `combine`, or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None
    combine: torch.Tensor | None = None
    offset: torch.Tensor | None = None

    @property
    def num_labels(self) -> int:
        return (self.weight if self.combine is None else self.combine).shape[0]

    @property
    def plain(self) -> bool:
        """Whether it is a matrix and nothing else, which every decoder class of transformers can hold."""
        return self.bias is None and self.softcap is None and self.combine is None

    def rescaled(self, scale: float, offset: torch.Tensor | None) -> LinearHead:
        """The head whose logits are `scale * logits + offset`.

        Args:
            offset: `(num_labels,)`; None adds nothing, and makes no bias where there was none.
        """
        import torch

        if self.softcap is None and self.combine is None:
            return replace(self, weight=self.weight * scale, bias=rescaled_bias(self.bias, scale, offset))
        combine = self.combine if self.combine is not None else torch.eye(self.num_labels)
        return replace(self, combine=combine * scale, offset=rescaled_bias(self.offset, scale, offset))


def rescaled_bias(bias: torch.Tensor | None, scale: float, offset: torch.Tensor | None) -> torch.Tensor | None:
    """`bias * scale + offset`, where None is nothing."""
    if bias is None:
        return offset
    return bias * scale if offset is None else bias * scale + offset


@dataclass(frozen=True)
class SequenceHead:
    """A head whose labels are texts of several tokens: a label's logit is the log-probability of its text.

    `logits = scale * log p(text | prompt) + offset`, by the model's own LM head,
    `cap(lm_scale * (W @ state + b))`; a label's texts add up their probabilities.

    Args:
        texts: token ids of each label's texts, in the order of the labels' indices.
        weight: name of the LM head's weight in the checkpoint; None where it is the input embeddings.
        bias: name of its bias, or None.
        lm_scale: of the LM head's logits.
        softcap: of the LM head's logits, or None.
        scale: of the labels' logits.
        offset: one a label, added to its logit; empty for none.
    """

    texts: tuple[tuple[tuple[int, ...], ...], ...]
    weight: str | None
    bias: str | None = None
    lm_scale: float = 1.0
    softcap: float | None = None
    scale: float = 1.0
    offset: tuple[float, ...] = ()

    def rescaled(self, scale: float, offset: Sequence[float]) -> SequenceHead:
        """The head whose logits are `scale * logits + offset`; an empty offset adds nothing."""
        before = [each * scale for each in self.offset] or [0.0] * len(self.texts)
        after = [one + other for one, other in zip(before, offset or [0.0] * len(before), strict=True)]
        return replace(self, scale=self.scale * scale, offset=tuple(after) if any(after) else ())


@dataclass(frozen=True)
class Head:
    """A head that is ready to be loaded or written.

    One of `linear`, `tensors` and `sequences` is set, and none for a head that is already in the checkpoint.

    Args:
        method: the name of its source ("tokens", "fit", …).
        linear: the head as a linear map of the pooled state.
        tensors: the head's parameters under the classifier class's own names.
        sequences: the head as texts that the language model itself scores.
        on_features: `linear` takes the output of the class's own inner head layers (a trained
            pooler), not the pooled state itself.
        description: how it was made, a paragraph for the model card.
        report: measurements made with it (accuracy …).
        trained: in the class that it is in, so that what this class pools counts; a head that is made reads what we pool.
    """

    method: str
    linear: LinearHead | None = None
    tensors: Mapping[str, torch.Tensor] | None = None
    sequences: SequenceHead | None = None
    on_features: bool = False
    description: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = False


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


def decoder_start(config: PreTrainedConfig) -> int | None:
    """The first token id that the decoder of an encoder-decoder reads, None without a decoder.

    Where the config does not say it: its decoder's first token, or padding, as T5 has it. The config of a model for
    images too has these in the part that reads texts (Florence-2).
    """
    if not config.is_encoder_decoder:
        return None
    decoder, text = getattr(config, "decoder", None), config.get_text_config(decoder=True)
    stated = [
        getattr(config, "decoder_start_token_id", None),
        getattr(text, "decoder_start_token_id", None),
        getattr(decoder, "bos_token_id", None),
        getattr(config, "pad_token_id", None),
        getattr(text, "pad_token_id", None),
    ]
    return next((each for each in stated if isinstance(each, int)), 0)


_RENAMED = {"position_ids": "numbering", "pooled_tokens": "pooled_count"}


class Architecture:
    """A family of models and how it becomes a classifier.

    Attributes:
        name: unique, shown by `vcls inspect` and in errors.
        model_types: values of `config.model_type` it matches.
        class_names: values of `config.architectures` it matches, which is more specific.
        generic: it matches whatever no other one does.
        final_linear: path of the last linear layer in the classifier class.
        task: "classify", or "token_classify" for what `for_tokens` gives.
        own_type: a config alone would open as another class, so classifiers are written with our own model type.
    """

    name: str = ""
    model_types: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    generic: bool = False
    final_linear: str = "score"
    task: str = "classify"
    own_type: bool = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for old, new in _RENAMED.items():
            if hasattr(cls, old):  # it would never be called, and the model would be numbered or pooled wrongly
                raise PluginError(
                    f"{cls.__name__}.{old} is of an earlier version; write {new}(config), asked once a model."
                )

    def specificity(self, model_type: str, class_names: Sequence[str] = ()) -> int:
        """3 for a match by class name, 2 by model type, 1 for a generic one, 0 for none."""
        if set(self.class_names) & set(class_names):
            return 3
        if model_type in self.model_types:
            return 2
        return 1 if self.generic else 0

    def classifier_class(self, config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
        """The class whose forward gives `.logits` `(num_sequences, num_labels)` for configs of this class.

        Of token classifiers, `(num_sequences, num_tokens, num_labels)`.
        """
        raise PluginError(
            f"the architecture {self.name!r} does not say which classifier_class it has; override that method."
        )

    def for_tokens(self, config_class: type[PreTrainedConfig]) -> Architecture:
        """This family as token classifiers: another class, pooling "ALL", a head on each token's state."""
        raise PluginError(
            f"the architecture {self.name!r} makes no token classifiers; subclass Encoder or Decoder of "
            "vllm_cls.adapters, or override for_tokens."
        )

    def complete(self, config: PreTrainedConfig) -> None:
        """Complete a config in place with values that this family's code hard-codes.

        Called once the config is read, its overrides included. Settings of the pooler go under `vcls`.
        """

    def is_native(self, config_class: type[PreTrainedConfig]) -> bool:
        """Whether plain transformers, without vllm-cls, opens the classifier class."""
        return self.classifier_class(config_class).__module__.startswith("transformers.")

    def checkpoint_format(self, config: PreTrainedConfig) -> str:
        """ "transformers" where plain transformers opens a classifier of this config, else "vcls"."""
        native = config.model_type != OWN_MODEL_TYPE and self.is_native(type(config))
        return "transformers" if native else "vcls"

    def pooling(self, config: PreTrainedConfig) -> str:
        """The pooling of the classifier class: "CLS", "LAST", "MEAN" or a plugin's; "ALL" of token classifiers."""
        return "LAST"

    def backbone(self, model: PreTrainedModel) -> PreTrainedModel:
        """The part of the classifier that turns token ids into hidden states."""
        return model.base_model

    def media_backbone(self, model: PreTrainedModel) -> PreTrainedModel:
        """The part that turns token ids, and what images and videos hold, into hidden states; its towers are in it."""
        return model.base_model

    def layers(self, backbone: PreTrainedModel) -> Sequence[nn.Module]:
        """The backbone's layers, in the order they run, where its last one can run for pooled positions alone.

        Found as the module list that is as long as the config says; empty where there is none.
        """
        depth = getattr(backbone.config.get_text_config(), "num_hidden_layers", None)
        for module in backbone.modules():
            if type(module).__name__ == "ModuleList" and depth and len(module) == depth:
                return list(module.children())
        return ()

    def head(self, model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Pooled states `(n, hidden)` → logits `(n, num_labels)`; None where only the whole forward can say."""
        return getattr(model, "pooled_logits", None)

    def why_not_packed(self, config: PreTrainedConfig) -> str | None:
        """A reason never to try packing, or None; the equivalence check decides in any case."""
        return None

    def numbering(self, config: PreTrainedConfig) -> Callable[[Sequence[int]], Sequence[int]] | None:
        """How the model numbers one sequence: token ids → position ids; None numbers them 0, 1, 2, …

        Asked once, when a model is opened.
        """
        return None

    def decoder_ids(self, config: PreTrainedConfig, input_ids: Sequence[int]) -> Sequence[int] | None:
        """What the decoder of an encoder-decoder reads for one sequence: the same text behind a start token.

        As in BART's and T5's classifiers; where a model does it otherwise, the equivalence check finds that and its own forward
        runs. None for all others.
        """
        start = decoder_start(config)
        return None if start is None else [start, *input_ids[:-1]]

    def pooled_count(self, config: PreTrainedConfig) -> Callable[[Sequence[int]], int] | None:
        """How many of a sequence's tokens are pooled, from the first on: token ids → their number; None pools all.

        Asked once, when a model is opened. The function raises `PromptError` for a sequence that has no such token as the
        model classifies at.
        """
        return None

    def pooling_method(
        self, model: PreTrainedModel, method: Callable[..., torch.Tensor]
    ) -> Callable[..., torch.Tensor]:
        """The function that pools, given the usual one; override it where a part of the head runs before pooling."""
        return method

    def max_positions(self, config: PreTrainedConfig) -> int | None:
        """The longest sequence the model takes, in tokens, or None where nothing bounds it."""
        text = config.get_text_config()
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length"):
            value = getattr(text, name, None)
            if isinstance(value, int) and value > 0:
                return value
        return None

    def min_tokens(self, config: PreTrainedConfig) -> int:
        """The shortest sequence the model takes, in tokens; a shorter prompt is refused."""
        return 1

    def vocab_size(self, config: PreTrainedConfig) -> int:
        """How many token ids there are."""
        return int(config.get_text_config().vocab_size)

    def takes_token_type_ids(self, config: PreTrainedConfig) -> bool:
        """Whether the backbone embeds token types, which tell the two texts of a pair apart."""
        return (getattr(config.get_text_config(), "type_vocab_size", 0) or 0) > 1

    def decision_head(self, model: PreTrainedModel) -> DecisionHead:
        """What reads the answers to typed questions off a `*ForDecision`: the model itself, where it is a `DecisionHead`."""
        if isinstance(model, DecisionHead):
            return model
        raise PluginError(
            f"the architecture {self.name!r} does not say how it answers questions; override decision_head."
        )

    def express(
        self, config: PreTrainedConfig, linear: LinearHead, *, on_features: bool
    ) -> Mapping[str, torch.Tensor] | None:
        """Parameters of the classifier class, by name, that compute `linear`; None where the class cannot.

        A head that the class cannot hold is written as our own model type instead.
        """
        return {f"{self.final_linear}.weight": linear.weight} if linear.plain else None
