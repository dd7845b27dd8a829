"""Plugins for three families of decision heads that transformers' decision template describes and has no classes for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import BertModel, BertPreTrainedModel, Qwen2Model, Qwen2PreTrainedModel

from vllm_cls.adapters import DecisionModel, Decoder, Encoder


class KevForDecision(DecisionModel, Qwen2PreTrainedModel):
    """A mark behind each option, then one behind the state: the state is compared with each option."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.option, self.state = nn.Linear(config.hidden_size, 16), nn.Linear(config.hidden_size, 16)
        self.post_init()

    def num_marks(self, question: Any) -> int:
        return len(question.options) + 1

    def scores(self, question: Any, read: Sequence[Any]) -> torch.Tensor:
        *options, state = (each.rows[0] for each in read)
        return self.option(torch.stack(options)) @ self.state(state)


class Kev(Decoder):
    name = "kev"
    class_names = ("KevForDecision",)

    def classifier_class(self, config_class: type) -> type:
        return KevForDecision


class VonForDecision(DecisionModel, BertPreTrainedModel):
    """A mark behind the mask token of each option; one more ends the block."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.verdict = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def num_marks(self, question: Any) -> int:
        return len(question.options) + 1

    def scores(self, question: Any, read: Sequence[Any]) -> torch.Tensor:
        masks = torch.stack([each.rows[0] for each in read[:-1]])
        return self.verdict(masks)[:, 0]


class Von(Encoder):
    name = "von"
    class_names = ("VonForDecision",)

    def classifier_class(self, config_class: type) -> type:
        return VonForDecision


class ClefForDecision(DecisionModel, Qwen2PreTrainedModel):
    """Marks round the question and round each option: what is between two of them is pooled, its output embeddings too."""

    in_pairs = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.pooled = nn.Linear(2 * config.hidden_size, 16)
        self.post_init()

    def num_marks(self, question: Any) -> int:
        return 2 * (len(question.options) + 1)

    def scores(self, question: Any, read: Sequence[Any]) -> torch.Tensor:
        pooled = [
            torch.cat([each.rows.mean(0), self.lm_head.weight[list(each.token_ids)].float().mean(0)]) for each in read
        ]
        asked, *options = self.pooled(torch.stack(pooled))
        return torch.stack(options) @ asked


class Clef(Decoder):
    name = "clef"
    class_names = ("ClefForDecision",)

    def classifier_class(self, config_class: type) -> type:
        return ClefForDecision
