"""`Architecture`, the heart of a plugin: subclass it, set `name` and what it matches, override what differs.

The defaults suit an encoder or decoder that keeps transformers' conventions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..decisions.heads import DecisionHead
from ..errors import PluginError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from .heads import LinearHead

OWN_MODEL_TYPE = "vcls"
"""`model_type` of a classifier that transformers' own classes cannot express; plain transformers refuses it."""
CLASSIFIERS = {"classify": "ForSequenceClassification", "token_classify": "ForTokenClassification"}
"""How the names of transformers' classifier classes end, by what they do."""
DECISIONS = "ForDecision"
"""How those of decision models end, whose heads answer typed questions."""
REWARDS = ("ForRewardModel", "ForProcessRewardModel")
"""How those of reward models end, whose classes transformers does not have."""


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
