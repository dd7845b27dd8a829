"""The class of GLiClass's uni-encoders, with the names of its checkpoints, and their config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import SequenceClassifierOutput

from vllm_cls.adapters.classifiers.seq_cls import AsTransformersOwn
from vllm_cls.architecture import LabelHead, ReadSpan
from vllm_cls.errors import ModelError

from .gliclass_scorers import POOLING, SCORERS

_LABEL, _SEPARATOR = "<<LABEL>>", "<<SEP>>"
_MARKERS = (_LABEL, _SEPARATOR, "<<EXAMPLE>>")
_EPSILON = 1e-8


class GLiClassConfig(PreTrainedConfig):
    """Config of a GLiClass model: what its head reads, and the config of its encoder.

    Args:
        encoder_config: the encoder's; DeBERTa-v2's where it does not say.
        class_token_index: the token before each label; `text_token_index` that behind the last label.
        embed_class_token: a label is read at that token; else at what follows it.
        class_token_pooling: "first", or "average" over all tokens of a label.
        pooling_strategy: of the text's states; a name of `POOLING`.
        extract_text_features: the text begins at `text_token_index`; else it is the whole prompt.
        prompt_first: the labels stand before the text.
    """

    model_type = "GLiClass"
    sub_configs = {"encoder_config": AutoConfig}

    def __init__(
        self,
        encoder_config: Any = None,
        vocab_size: int | None = None,
        hidden_size: int | None = None,
        class_token_index: int = -1,
        text_token_index: int = -1,
        projector_hidden_act: str = "gelu",
        scorer_type: str = "simple",
        scorer_num_heads: int = 16,
        scorer_mlp_hidden_size: int = 1024,
        pooling_strategy: str = "first",
        class_token_pooling: str = "first",
        use_lstm: bool = False,
        normalize_features: bool = False,
        extract_text_features: bool = False,
        architecture_type: str = "uni-encoder",
        prompt_first: bool = False,
        embed_class_token: bool = True,
        **kwargs: Any,
    ) -> None:
        if not isinstance(encoder_config, PreTrainedConfig):
            encoder_config = AutoConfig.for_model(**{"model_type": "deberta-v2", **(encoder_config or {})})
        self.encoder_config = encoder_config
        text = encoder_config.get_text_config()
        self.vocab_size = text.vocab_size = vocab_size or text.vocab_size
        self.hidden_size = hidden_size or text.hidden_size
        self.class_token_index = self.vocab_size if class_token_index == -1 else class_token_index
        self.text_token_index = self.vocab_size + 1 if text_token_index == -1 else text_token_index
        self.projector_hidden_act = projector_hidden_act
        self.scorer_type, self.scorer_num_heads = scorer_type, scorer_num_heads
        self.scorer_mlp_hidden_size = scorer_mlp_hidden_size
        self.pooling_strategy, self.class_token_pooling = pooling_strategy, class_token_pooling
        self.use_lstm, self.normalize_features = use_lstm, normalize_features
        self.extract_text_features, self.embed_class_token = extract_text_features, embed_class_token
        self.architecture_type, self.prompt_first = architecture_type, prompt_first
        super().__init__(**kwargs)

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PreTrainedConfig:
        text: PreTrainedConfig = self.encoder_config.get_text_config(decoder=decoder, encoder=encoder)
        return text


class _Projector(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: GLiClassConfig) -> None:
        super().__init__()
        size = config.get_text_config().hidden_size
        self.linear_1, self.linear_2 = nn.Linear(size, config.hidden_size), nn.Linear(config.hidden_size, size)
        self.activation = ACT2FN[config.projector_hidden_act]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.linear_2(self.activation(self.linear_1(states)))
        return projected


class _Recurrent(nn.Module):
    """A bidirectional LSTM over a text's states."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(size, size // 2, bidirectional=True, batch_first=True)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        read: torch.Tensor = self.lstm(states[None])[0][0]
        return read


class _UniEncoder(nn.Module):
    """The encoder, and the parts that make logits of its states."""

    def __init__(self, config: GLiClassConfig) -> None:
        super().__init__()
        self.encoder_model = AutoModel.from_config(config.encoder_config)
        self.text_projector, self.classes_projector = _Projector(config), _Projector(config)
        self.scorer = SCORERS[config.scorer_type](config)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        if config.use_lstm:
            self.lstm = _Recurrent(config.hidden_size)


class StatesAsTheyAre(nn.Module):
    """What each token's state becomes before it is read: nothing. It holds the layers that read it, for their dtype."""

    def __init__(self, model: _UniEncoder) -> None:
        super().__init__()
        for name, part in model.named_children():
            if name != "encoder_model":
                self.add_module(name, part)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states


class GLiClassForSequenceClassification(LabelHead, AsTransformersOwn, PreTrainedModel):
    """A text and its labels in one prompt: `<<LABEL>>one<<LABEL>>other<<SEP>>text`."""

    config: GLiClassConfig
    config_class = GLiClassConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: GLiClassConfig) -> None:
        for kind, known in ((config.scorer_type, SCORERS), (config.pooling_strategy, POOLING)):
            if kind not in known:
                raise ModelError(f"a GLiClass model with {kind!r}; known are {', '.join(known)}.")
        super().__init__(config)
        self.model = _UniEncoder(config)
        self.post_init()

    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Token ids `(batch, length)` → as `.logits` the first token's states `(batch, hidden)`."""
        hidden = self.model.encoder_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)[0]
        return SequenceClassifierOutput(logits=hidden[:, 0])

    def prompt(self, text: str, labels: Sequence[str]) -> str:
        for label in labels:
            if any(marker in label for marker in _MARKERS):
                raise ValueError(f"{label!r} holds a marker of this model ({', '.join(_MARKERS)}); name it otherwise.")
        asked = "".join(_LABEL + label for label in labels) + _SEPARATOR
        return asked + text if self.config.prompt_first else text + asked

    def reads(self, token_ids: Sequence[int], num_labels: int) -> list[range]:
        """The text, then each label."""
        config, length = self.config, len(token_ids)
        marked = [place for place, token in enumerate(token_ids) if token == config.class_token_index]
        if len(marked) < num_labels:
            raise ValueError(f"{num_labels - len(marked)} of {num_labels} labels are not in the prompt; give fewer.")
        chosen = (
            slice(num_labels) if config.prompt_first else slice(-num_labels, None)
        )  # a text may hold such tokens, too
        starts, ends = marked[chosen], [*marked[1:], length][chosen]
        separators = [place for place, token in enumerate(token_ids) if token == config.text_token_index]
        apart = config.extract_text_features and bool(separators)
        text = range(separators[0] if apart else 0, length)
        if config.pooling_strategy == "first" and not config.use_lstm:
            text = text[:1]
        skipped = int(not config.embed_class_token)
        if config.class_token_pooling != "average":
            ends = [start + skipped + 1 for start in starts]
        elif apart:
            ends = [min(end, separators[0]) for end in ends]
        return [text, *(range(start + skipped, end) for start, end in zip(starts, ends, strict=True))]

    def logits(self, token_ids: Sequence[int], read: Sequence[ReadSpan]) -> torch.Tensor:
        config, model = self.config, self.model
        text = read[0].rows
        if config.use_lstm:
            text = model.lstm(text)
        elif config.pooling_strategy not in ("first", "pass"):
            # as the library has it: moved to the front, with zeros in the place of what stood before
            text = nn.functional.pad(text, (0, 0, 0, len(token_ids) - len(text)))
        labels = torch.stack([each.rows.sum(0) / max(1, len(each.rows)) for each in read[1:]])
        text = model.text_projector(POOLING[config.pooling_strategy](text))
        labels = model.classes_projector(labels)
        if not config.normalize_features:
            scores: torch.Tensor = model.scorer(text, labels)
            return scores
        text, labels = (each / (each.norm(dim=-1, keepdim=True) + _EPSILON) for each in (text, labels))
        scaled: torch.Tensor = model.scorer(text, labels) * model.logit_scale
        return scaled
