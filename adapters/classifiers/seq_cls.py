"""`as_seq_cls_model`: a base model with a `score` layer on one state a sequence.

What vLLM's adapter of the same name does at load time, as an ordinary transformers class: it loads,
saves and trains. Its `score` may hold more than transformers' decoder classes can (a bias, a soft cap,
another pooling); the config says what, under the key `vcls`.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from vllm_cls.architecture import LinearHead, decoder_start
from vllm_cls.pooler.heads import softcapped
from vllm_cls.pooler.methods import named
from vllm_cls.registry import registry

_SUFFIXES = ("Model", "ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True)
class HeadShape:
    """The form of a `score` layer, as the config keeps it under `vcls.head`.

    Args:
        num_rows: rows of `score.weight`; None means one a label.
        bias: whether `score` has one.
        softcap: of the rows' logits, or None.
        combine: whether the labels are linear combinations of the rows (`combine.weight`).
        offset: whether these have a bias of their own (`combine.bias`).
    """

    num_rows: int | None = None
    bias: bool = False
    softcap: float | None = None
    combine: bool = False
    offset: bool = False

    @classmethod
    def from_head(cls, head: LinearHead) -> HeadShape:
        parts = [each is not None for each in (head.bias, head.combine, head.offset)]
        return cls(head.weight.shape[0], parts[0], head.softcap, *parts[1:])

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> HeadShape:
        return cls(**(own_settings(config).get("head") or {}))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def own_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """What a config holds under the key `vcls`."""
    return getattr(config, "vcls", None) or {}


def head_tensors(head: LinearHead) -> dict[str, torch.Tensor]:
    """The parameters of `score` and `combine` that compute `head`, by name."""
    named = {
        "score.weight": head.weight,
        "score.bias": head.bias,
        "combine.weight": head.combine,
        "combine.bias": head.offset,
    }
    return {name: tensor for name, tensor in named.items() if tensor is not None}


class AsTransformersOwn:
    """Mixin: what transformers derives from a class's module is derived from the backbone's module.

    Loading initialises what is not stored (rotary frequencies, Falcon-H1's multipliers) differently for custom code.
    """

    experts_of: type[PreTrainedModel] | None = None

    @classmethod
    def is_custom_code(cls) -> bool:
        return False

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return cls.experts_of is not None and bool(cls.experts_of._can_set_experts_implementation())


class LinearClassifier(AsTransformersOwn):
    """Base of the classes made here and in `token_cls`: a base model followed by `score`. Their next base is a
    `PreTrainedModel`."""

    config: Any
    base_model_prefix: str
    loss_function: Any

    def build_head(self) -> None:
        """Make `score` and, where the config asks for it, `combine`."""
        shape = HeadShape.from_config(self.config)
        hidden = self.config.get_text_config().hidden_size
        self.num_labels = self.config.num_labels
        self.score = nn.Linear(hidden, shape.num_rows or self.num_labels, bias=shape.bias)
        self.softcap = shape.softcap
        if shape.combine:
            self.combine = nn.Linear(self.score.out_features, self.num_labels, bias=shape.offset)

    def pooled_logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled states `(n, hidden)` → logits `(n, num_labels)`, in the head's dtype."""
        logits = softcapped(self.score(pooled.to(self.score.weight.dtype)), self.softcap)
        return self.combine(logits) if hasattr(self, "combine") else logits

    def hidden_states(self, **inputs: Any) -> torch.Tensor:
        """The base model's output for what `forward` is given: `(batch, length, hidden)`."""
        inputs.pop("return_dict", None)
        backbone = getattr(self, self.base_model_prefix)
        start = decoder_start(backbone.config)
        if start is not None:
            ids = inputs["input_ids"]
            inputs.setdefault("decoder_input_ids", torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], dim=1))
        hidden: torch.Tensor = backbone(**inputs)[0]
        return hidden


class SequenceClassifier(LinearClassifier):
    """Mixin: pooling, head, loss of a classifier of sequences."""

    @property
    def pooling(self) -> str:
        """The pooling method: "CLS", "LAST", "MEAN" or a plugin's."""
        pooling: str = own_settings(self.config).get("pooling", "LAST")
        return pooling

    def pool(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Hidden states `(batch, length, hidden)` → `(batch, hidden)`; only the mask says what is padding."""
        if attention_mask is None:
            attention_mask = hidden.new_ones(hidden.shape[:2], dtype=torch.long)
        mask = attention_mask.to(hidden.device).long()
        if self.pooling not in ("CLS", "LAST", "MEAN"):  # those are done on padded batches
            lengths = mask.sum(dim=1)
            method = named(self.pooling, registry().pooling_methods())
            return method(hidden[mask.bool()], lengths.cumsum(0) - lengths, lengths)
        if self.pooling == "MEAN":
            weights = mask[:, :, None].float()
            return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)
        index = torch.arange(hidden.shape[1], device=hidden.device)
        place = (mask * index).argmax(-1) if self.pooling == "LAST" else mask.argmax(-1)
        return hidden[torch.arange(len(hidden), device=hidden.device), place]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Token ids `(batch, length)` → `.logits` `(batch, num_labels)`, with `.loss` where labels are given."""
        hidden = self.hidden_states(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        logits = self.pooled_logits(self.pool(hidden, attention_mask))
        return self.output(logits, labels)

    def output(self, logits: torch.Tensor, labels: torch.Tensor | None) -> SequenceClassifierOutput:
        """Logits `(batch, num_labels)` with their loss, where labels are given."""
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, logits=logits, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def as_seq_cls_model(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The sequence classifier of a base model's class.

    Args:
        model_class: a `*Model` whose first output is hidden states `(batch, length, hidden)`.

    Returns:
        A class `*ForSequenceClassification`. It keeps the family's `base_model_prefix`, so it reads the
        checkpoints of both the `*Model` and the `*ForCausalLM`.
    """
    return class_on(model_class, SequenceClassifier, "ForSequenceClassification")


def class_on(model_class: type[PreTrainedModel], kind: type[LinearClassifier], ending: str) -> type[PreTrainedModel]:
    """The subclass of `kind` for a base model, made once and cached; `ending` is the end of its name."""
    made: type[PreTrainedModel] = _made(model_class, kind, ending)  # type: ignore[arg-type]  # classes are hashable
    return made


@functools.cache
def _made(model_class: Any, kind: type[LinearClassifier], ending: str) -> type[PreTrainedModel]:
    family = [base for base in model_class.__mro__ if issubclass(base, PreTrainedModel) and base is not PreTrainedModel]
    parent = family[-1] if family[-1] is not model_class else PreTrainedModel
    prefix = (model_class.base_model_prefix or "model").rpartition(".")[2]  # "language_model.model" names two modules

    def __init__(self: Any, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super(made, self).__init__(config, *args, **kwargs)
        backbone = model_class(config)
        if isinstance(backbone, GenerationMixin):  # a whole generator (Llama 4): its states come out, not its logits
            backbone.set_output_embeddings(nn.Identity())
        setattr(self, prefix, backbone)
        self.build_head()
        self.post_init()

    stem = next((model_class.__name__.removesuffix(s) for s in _SUFFIXES if model_class.__name__.endswith(s)), None)
    made: type[PreTrainedModel] = type(parent)(
        f"{stem or model_class.__name__}{ending}",
        (kind, parent),
        {
            "__init__": __init__,
            "__module__": __name__,
            "__doc__": f"{model_class.__name__} with a linear head.",
            "base_model_prefix": prefix,
            "config_class": model_class.config_class,
            "experts_of": model_class,
        },
    )
    return made
