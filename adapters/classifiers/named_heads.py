"""Several named heads on one backbone: their entries in a config, and the modules that compute them.

All read the same states, so a text runs once whatever the number of heads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from vllm_cls.architecture import SequenceHead
from vllm_cls.pooler.heads import ReplayedHead
from vllm_cls.pooler.sequences import SequenceScorer

from .families import Encoder, native_class
from .seq_cls import LinearClassifier, own_settings
from .sequence_settings import sequences_from

# Keys of a config by which Sentence Transformers names the activation.
ACTIVATION_KEYS = ("sentence_transformers", "sbert_ce_default_activation_function")


@dataclass(frozen=True)
class NamedHead:
    """One entry of the list `vcls.heads` in a config: a named head. The first one is the default.

    One of `linear`, `sequences` and `own` is set.

    Args:
        name: its name, unique among the heads.
        method: its head source ("tokens", "fit" …).
        labels: in the order of their indices.
        problem_type: as in transformers, or None.
        activation: the values of `ACTIVATION_KEYS` that the config of this head alone would have.
        linear: the form of a linear head (`HeadShape`).
        sequences: a head of label texts (`sequence_settings`).
        own: the head is that of transformers' classifier class.
        description: how it was made.
    """

    name: str
    method: str
    labels: Sequence[str]
    problem_type: str | None = None
    activation: Mapping[str, Any] = field(default_factory=dict)
    linear: Mapping[str, Any] | None = None
    sequences: Mapping[str, Any] | None = None
    own: bool = False
    description: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def texts(self) -> SequenceHead | None:
        """The label texts of a head made of them."""
        return sequences_from({"sequences": self.sequences})

    def config(self, outer: Any) -> PreTrainedConfig:
        """The config that a classifier with this head alone would have; of transformers' class, where that is its own.

        Args:
            outer: of our own type.
        """
        config = copy.deepcopy(outer.backbone_config if self.own else outer)
        config.id2label = dict(enumerate(self.labels))
        config.label2id = {label: index for index, label in enumerate(self.labels)}
        config.problem_type = self.problem_type
        for key in ACTIVATION_KEYS:
            if hasattr(config, key):
                delattr(config, key)
        for key, value in self.activation.items():
            setattr(config, key, value)
        if not self.own:
            config.vcls = {"head": dict(self.linear or {})}
        return config


def named_heads(config: PreTrainedConfig) -> list[NamedHead]:
    """The heads with names that a config of our own type lists."""
    return [NamedHead(**each) for each in own_settings(config).get("heads") or ()]


class LinearPart(LinearClassifier, nn.Module):
    """A linear head, with what `HeadShape` says of it."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.build_head()

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled states `(n, hidden)` → logits `(n, num_labels)`."""
        return self.pooled_logits(pooled)


class OwnPart(nn.Module):
    """The head of transformers' classifier class: its layers beside the backbone, and the pooler in it.

    Args:
        config: of that class.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        own_class: Any = native_class(type(config))
        with torch.device("meta"):
            model = own_class(copy.deepcopy(config)).eval()
        known = {id(parameter): name for name, parameter in model.named_parameters()}
        pooler = Encoder().backbone_pooler(model)
        replayed = ReplayedHead(model, pooler)
        self.__dict__["_replayed"] = replayed  # its layers are registered here, under their own names
        self.names: dict[str, str] = {}
        for name, child in model.named_children():
            if name != model.base_model_prefix:
                self.add_module(name, child)
                self.names |= {known[id(each)]: f"{name}.{path}" for path, each in child.named_parameters()}
        if pooler is not None:
            self.backbone_pooler = replayed.pooler
            self.names |= {known[id(each)]: f"backbone_pooler.{path}" for path, each in pooler.named_parameters()}
        self.to_empty(device=torch.get_default_device())

    @property
    def replayed(self) -> ReplayedHead:
        """What runs the class's own forward on these layers."""
        found: ReplayedHead = self.__dict__["_replayed"]
        return found

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled states `(n, hidden)` → logits `(n, num_labels)`."""
        dtype = next(self.parameters()).dtype
        logits: torch.Tensor = self.replayed(pooled.to(dtype))
        return logits


def part_of(head: NamedHead, config: PreTrainedConfig) -> nn.Module:
    """The module that computes one head; it has no parameters for a head of label texts.

    Args:
        config: of the whole model.
    """
    if head.sequences is not None:
        return nn.Identity()
    return OwnPart(head.config(config)) if head.own else LinearPart(head.config(config))


class SeveralHeads:
    """All heads at once: states after the prompt and after prefixes of label texts → the logits of all heads, concatenated.

    Args:
        heads: each a module on pooled states, or a scorer of label texts.
    """

    def __init__(self, heads: Sequence[Callable[[torch.Tensor], torch.Tensor] | SequenceScorer]) -> None:
        self._heads = heads
        found = {ids for each in heads if isinstance(each, SequenceScorer) for ids in each.beginnings} | {()}
        self.beginnings = sorted(found, key=lambda ids: (len(ids), ids))
        self._index_of = {ids: index for index, ids in enumerate(self.beginnings)}

    def each(self, states: torch.Tensor) -> list[torch.Tensor]:
        """States `(n, num_beginnings, hidden)` → logits `(n, num_labels)` of each head, float32."""
        found = []
        for head in self._heads:
            if isinstance(head, SequenceScorer):
                found.append(head(states[:, [self._index_of[ids] for ids in head.beginnings]]).float())
            else:
                found.append(head(states[:, 0]).float())
        return found

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """As `each`, in one tensor `(n, labels of all heads)`."""
        return torch.cat(self.each(states), dim=1)
