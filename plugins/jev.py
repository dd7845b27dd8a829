"""JEV: decision models whose head scores the options of typed questions, on any backbone that its config names."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

from vllm_cls.adapters import Decoder
from vllm_cls.architecture import LogitsAtMark
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.decision import DecisionConfig, Question


class Jev(Decoder):
    """A soft-capped linear layer on the token before a mark; a question type's options begin at a row of their own."""

    name = "jev"
    model_types = ("jev",)
    class_names = ("JevForDecision",)
    final_linear = "proj"

    def classifier_class(self, config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
        return _jev_class()

    def complete(self, config: Any) -> None:
        if config.num_labels != config.num_verbalizers:
            config.num_labels = config.num_verbalizers

    def backbone(self, model: PreTrainedModel) -> PreTrainedModel:
        found: PreTrainedModel = getattr(model.base_model, "language_model", model.base_model)
        return found

    def vocab_size(self, config: PreTrainedConfig) -> int:
        return super().vocab_size(config.get_text_config())  # which may be that of a model for images, with one inside

    def max_positions(self, config: PreTrainedConfig) -> int | None:
        return super().max_positions(config.get_text_config())

    def decision_head(self, model: PreTrainedModel) -> LogitsAtMark:
        return LogitsAtMark(functools.partial(_columns, model.config))


def _columns(config: Any, question: Question) -> range:
    """The logits of a question's options: from its type's offset, at most to that of the next one."""
    start, count = config.offsets[question.type], len(question.options)
    end = min((each for each in config.offsets.values() if each > start), default=config.num_verbalizers)
    if start + count > end:
        raise ValueError(
            f"Question {question.name!r}: this model reads at most {end - start} options for a {question.type} question, "
            f"got {count}."
        )
    return range(start, start + count)


@functools.cache
def _jev_class() -> type[PreTrainedModel]:
    """transformers' `JevForDecision`, whose forward gives the logits of all rows at the last token."""
    from torch import nn
    from transformers import AutoModel, JevConfig
    from transformers.models.jev.modeling_jev import JevPreTrainedModel

    from vllm_cls.adapters.classifiers.seq_cls import SequenceClassifier

    class JevForDecision(SequenceClassifier, JevPreTrainedModel):
        """The backbone and `proj`."""

        # what `pooled_logits` reads
        score: Any = property(operator.attrgetter("proj"))
        softcap: Any = property(operator.attrgetter("config.softcap"))

        def __init__(self, config: JevConfig) -> None:
            super().__init__(config)
            self.model = AutoModel.from_config(config.text_config)
            self.proj = nn.Linear(config.hidden_size, config.num_verbalizers, bias=getattr(config, "head_bias", True))
            self.post_init()

    return JevForDecision


@hookimpl
def vcls_decision_models(folder: Path) -> tuple[PreTrainedConfig, DecisionConfig] | None:
    """The layouts that JEV-9B and vLLM's decision models are published in: a file of settings, and the head's weights."""
    if not any((folder / name).is_file() for name in ("judge_config.json", "decision_config.json")):
        return None
    from transformers import JevForDecision

    config, settings = JevForDecision.checkpoint_config(folder)
    if config is None or settings is None:
        return None
    config.architectures = ["JevForDecision"]
    config.head_bias = not (folder / "readout.safetensors").is_file()  # vLLM's have none; transformers adds zeros
    return config, settings


@hookimpl
def vcls_architectures() -> list[Jev]:
    return [Jev()]
