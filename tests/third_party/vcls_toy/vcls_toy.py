"""A model that transformers does not know, and the plugin that makes it a classifier."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vllm_cls import Architecture, Head, HeadOption, HeadRequest, HeadResult, HeadSource, LinearHead, hookimpl
from vllm_cls.adapters import as_seq_cls_model


class ToyConfig(PreTrainedConfig):
    model_type = "toy"

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 32,
        num_attention_heads: int = 4,
        max_position_embeddings: int = 64,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**kwargs)


class ToyPreTrainedModel(PreTrainedModel):
    config_class = ToyConfig
    base_model_prefix = "toy"
    _supports_sdpa = True
    _supports_attention_backend = True


class ToyAttention(nn.Module):
    is_causal = True
    num_key_value_groups = 1

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor, attention_mask: Any, **kwargs: Any) -> torch.Tensor:
        """States `(batch, length, hidden)` → the same shape, through transformers' attention interface."""
        batch, length, size = hidden.shape
        heads = self.config.num_attention_heads
        states = self.query_key_value(hidden).view(batch, length, 3, heads, size // heads)
        query, key, value = states.permute(2, 0, 3, 1, 4)
        stock = ALL_ATTENTION_FUNCTIONS["sdpa"]
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, stock)
        attended, _ = attend(self, query, key, value, attention_mask, scaling=(size // heads) ** -0.5, **kwargs)
        return self.output(attended.reshape(batch, length, size))


class ToyModel(ToyPreTrainedModel):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.attention = ToyAttention(config)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Token ids `(batch, length)` → hidden states `(batch, length, hidden)`."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        hidden = self.tokens(input_ids) + self.positions(position_ids)
        mask = create_causal_mask(self.config, hidden, attention_mask, None, position_ids)
        return BaseModelOutput(last_hidden_state=self.norm(hidden + self.attention(hidden, mask)))


class ToyForCausalLM(ToyPreTrainedModel):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.toy = ToyModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> CausalLMOutput:
        """Token ids `(batch, length)` → logits of the next token `(batch, length, vocabulary)`."""
        return CausalLMOutput(logits=self.lm_head(self.toy(input_ids, **kwargs)[0]))


AutoConfig.register("toy", ToyConfig)
AutoModel.register(ToyConfig, ToyModel)
AutoModelForCausalLM.register(ToyConfig, ToyForCausalLM)


class Toy(Architecture):
    """A causal model: the state of the last token, and a `score` layer."""

    name = "toy"
    model_types = ("toy",)

    def classifier_class(self, config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
        return as_seq_cls_model(ToyModel)


@hookimpl
def vcls_architectures() -> list[Architecture]:
    return [Toy()]


def median(hidden: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The median over a text's tokens: states `(num_rows, hidden)` → `(num_texts, hidden)`."""
    texts = zip(starts.tolist(), lengths.tolist(), strict=True)
    return torch.stack([hidden[start : start + length].median(0).values for start, length in texts])


@hookimpl
def vcls_pooling_methods() -> dict[str, Callable[..., torch.Tensor]]:
    return {"median": median}


def constant(request: HeadRequest) -> HeadResult:
    """Every weight is `--weight`; for tests."""
    weight = torch.full((len(request.labels), request.config.hidden_size), request.options["weight"])
    return HeadResult(Head("constant", LinearHead(weight)), request.labels, request.problem_type)


@hookimpl
def vcls_head_sources() -> dict[str, HeadSource]:
    """Beside the architecture, so that the whole module is loaded before it is known; see vcls_toy_heads for another way."""
    return {"constant": HeadSource(constant, "one number", options=(HeadOption("weight", "The number.", float, 0.5),))}
