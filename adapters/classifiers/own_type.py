"""The custom model type `vcls`: any backbone, with a head that transformers' class cannot hold, or with several heads."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from vllm_cls.architecture import OWN_MODEL_TYPE, SequenceHead
from vllm_cls.errors import ModelError
from vllm_cls.pooler.sequences import SequenceScorer, continued

from .named_heads import SeveralHeads, named_heads, part_of
from .seq_cls import SequenceClassifier, own_settings
from .sequence_settings import sequences_from
from .token_cls import TokenClassifier


class VclsConfig(PreTrainedConfig):
    """Config of a classifier that transformers' own class cannot express.

    Args:
        backbone_config: the config of the backbone, any that `AutoModel` knows.
        vcls: pooling, the form of the head or the list of heads, the prompt template.
    """

    model_type = OWN_MODEL_TYPE
    sub_configs = {"backbone_config": AutoConfig}

    def __init__(self, backbone_config: Any = None, vcls: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if isinstance(backbone_config, dict):
            backbone_config = AutoConfig.for_model(**backbone_config)
        self.backbone_config = backbone_config if backbone_config is not None else AutoConfig.for_model("bert")
        self.vcls = vcls or {}
        super().__init__(**kwargs)

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PreTrainedConfig:
        text: PreTrainedConfig = self.backbone_config.get_text_config(decoder=decoder, encoder=encoder)
        return text


def _backbone(config: VclsConfig) -> PreTrainedModel:
    """A new backbone: the base model of its config, or the submodule of the language model that `backbone_of` names.

    Raises:
        ModelError: `backbone_of` is no class of transformers.
    """
    name = own_settings(config).get("backbone_of")
    if name is None:
        model: PreTrainedModel = AutoModel.from_config(config.backbone_config)
        return model
    whole = getattr(transformers, name, None)
    if not isinstance(whole, type) or not issubclass(whole, PreTrainedModel):
        raise ModelError(f"the checkpoint's backbone is a part of {name!r}, which transformers does not have.")
    part: PreTrainedModel = whole(config.backbone_config).base_model
    return part


class AnyBackbone(PreTrainedModel):
    """A model whose config holds another model's; plain transformers refuses its `model_type`."""

    build_head: Any
    config_class = VclsConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]  # kept for heads to come, and not loaded

    def __init__(self, config: VclsConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.model = backbone if backbone is not None else _backbone(config)
        pooler = getattr(self.model, "pooler", None)
        if isinstance(pooler, nn.Module) and not own_settings(config).get("pooler"):
            self.model.pooler = nn.Identity()  # its output is not used, and few models have one
        self.build_head()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        own = [getattr(self, name, None) for name in ("score", "combine", "lm_head", "heads")]
        if any(module is each for part in own if isinstance(part, nn.Module) for each in part.modules()):
            super()._init_weights(module)


class VclsForSequenceClassification(SequenceClassifier, AnyBackbone):
    """Any backbone, any pooling; a linear head, one of label texts, or several with names, of which `.logits` are the
    first one's."""

    def build_head(self) -> None:
        self.named_heads = named_heads(self.config)
        self.sequences = sequences_from(own_settings(self.config))
        if self.named_heads:
            self.heads = nn.ModuleList(part_of(each, self.config) for each in self.named_heads)
        elif self.sequences is None:
            super().build_head()
        self.num_labels = self.config.num_labels
        texts = [self.sequences, *(each.texts for each in self.named_heads)]
        untied = [each for each in texts if each is not None and each.weight is not None]
        if untied:
            text = self.config.get_text_config()
            self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=untied[0].bias is not None)

    @property
    def several(self) -> SeveralHeads | None:
        """All heads that have names, as one; None where there is a single one without."""
        if not self.named_heads:
            return None
        heads = zip(self.named_heads, self.heads, strict=True)
        return SeveralHeads([part if each.texts is None else self._scorer(each.texts) for each, part in heads])

    @property
    def scorer(self) -> SequenceScorer | SeveralHeads | None:
        """Computes logits from the states after a prompt and after label texts; None where the prompt's state is enough."""
        several = self.several
        if several is not None:
            return several if several.beginnings != [()] else None
        return None if self.sequences is None else self._scorer(self.sequences)

    def _scorer(self, head: SequenceHead) -> SequenceScorer:
        return SequenceScorer(head, self.model.get_input_embeddings() if head.weight is None else self.lm_head)

    def pooled_logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """As `LinearClassifier.pooled_logits`; of the first one of several heads."""
        if self.named_heads:
            logits: torch.Tensor = self.heads[0](pooled)
            return logits
        return super().pooled_logits(pooled)

    def all_logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled states `(n, hidden)` → the logits of all heads side by side, where none is of label texts."""
        several = self.several
        return self.pooled_logits(pooled) if several is None else several(pooled[:, None])

    def logits_by_head(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Token ids `(batch, length)` → the logits `(batch, num_labels)` of each head that has a name; one forward."""
        several = self.several
        if several is None:
            raise ValueError("this classifier has one head, without a name; its forward gives the logits")
        states = self._states(several, input_ids, attention_mask, **kwargs)
        return {head.name: logits for head, logits in zip(self.named_heads, several.each(states), strict=True)}

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """As `SequenceClassifier.forward`; a head of texts runs each prompt once for each beginning of a text."""
        first = self.scorer
        if self.named_heads:
            texts = self.named_heads[0].texts
            first = None if texts is None else self._scorer(texts)
        if first is None:
            return super().forward(input_ids, attention_mask, labels, **kwargs)
        if input_ids is None:
            raise ValueError("a head of label texts needs input_ids")
        return self.output(first(self._states(first, input_ids, attention_mask, **kwargs)), labels)

    def _states(
        self,
        scorer: SequenceScorer | SeveralHeads,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Pooled states `(batch, num_beginnings, hidden)` after each prompt with each prefix of a label text."""
        if len(scorer.beginnings) == 1:
            hidden = self.hidden_states(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            return self.pool(hidden, attention_mask)[:, None]
        ids, mask = continued(input_ids, attention_mask, scorer.beginnings)
        hidden = self.hidden_states(input_ids=ids, attention_mask=mask, **kwargs)
        return self.pool(hidden, mask).reshape(len(input_ids), len(scorer.beginnings), -1)


class VclsForTokenClassification(TokenClassifier, AnyBackbone):
    """Any backbone, any linear head on each token's state."""
