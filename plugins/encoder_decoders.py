"""Encoder-decoders: their own classification classes, and their decoders saved alone as causal language models."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm_cls.adapters import Decoder
from vllm_cls.architecture import Architecture
from vllm_cls.errors import PromptError
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from vllm_cls.architecture import LinearHead


class EncoderDecoder(Decoder):
    """The decoder's state at the last end-of-text token, where the decoder reads the same text shifted by one.

    Args:
        final_linear: path of the last linear layer.
        at_eos: it classifies at the last end-of-text token, whatever follows (mBART's language code), else at the last
            token. Texts with several of them may share a batch, which transformers' own forward refuses.
        wraps: the decoder starts with the text's last token instead of a start token.
    """

    def __init__(
        self, name: str, *model_types: str, final_linear: str, at_eos: bool = True, wraps: bool = False
    ) -> None:
        self.name, self.model_types, self.final_linear = name, model_types, final_linear
        self._at_eos, self._wraps = at_eos, wraps

    def decoder_ids(self, config: PreTrainedConfig, input_ids: Sequence[int]) -> Sequence[int] | None:
        return [input_ids[-1], *input_ids[:-1]] if self._wraps else super().decoder_ids(config, input_ids)

    def pooled_count(self, config: PreTrainedConfig) -> Callable[[Sequence[int]], int] | None:
        return functools.partial(_up_to_last, config.eos_token_id) if self._at_eos else None

    def layers(self, backbone: PreTrainedModel) -> Sequence[nn.Module]:
        return ()  # the last layer reads the encoder's states of all tokens

    def head(self, model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor] | None:
        head: Callable[[torch.Tensor], torch.Tensor]
        head = getattr(model, "pooled_logits", None) or model.get_submodule(self.final_linear.partition(".")[0])
        return head

    def express(
        self, config: PreTrainedConfig, linear: LinearHead, *, on_features: bool
    ) -> Mapping[str, torch.Tensor] | None:
        return None  # there is a tanh before the last layer, behind a dense layer of the decoder's width


class DecoderAlone(Decoder):
    """The decoder of an encoder-decoder, saved alone as `*ForCausalLM`.

    The config alone would open as the encoder-decoder, so a classifier of it has our own model type.
    """

    name = "decoder alone"
    own_type = True
    class_names = tuple(
        f"{family}ForCausalLM"
        for family in (
            "Bart", "BigBirdPegasus", "Blenderbot", "BlenderbotSmall", "Marian", "MBart", "Mvp", "Pegasus", "PLBart",
            "ProphetNet", "TrOCR", "Whisper",
        )
    )  # fmt: skip

    def decoder_ids(self, config: PreTrainedConfig, input_ids: Sequence[int]) -> None:
        return None

    def max_positions(self, config: PreTrainedConfig) -> int | None:
        return _positions(config, super().max_positions(config))

    def classifier_class(self, config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        from vllm_cls.adapters import as_seq_cls_model

        causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
        wrapper = causal.__name__.replace("ForCausalLM", "DecoderWrapper")
        return as_seq_cls_model(getattr(sys.modules[causal.__module__], wrapper))


class ProphetNet(Decoder):
    """ProphetNet, for which transformers has no classifier class."""

    name = "prophetnet"
    model_types = ("prophetnet",)

    def layers(self, backbone: PreTrainedModel) -> Sequence[nn.Module]:
        return ()

    def max_positions(self, config: PreTrainedConfig) -> int | None:
        return _positions(config, super().max_positions(config))


def _up_to_last(token: int, input_ids: Sequence[int]) -> int:
    """How many tokens there are up to the last one that is `token`.

    Raises:
        PromptError: there is none.
    """
    if token not in input_ids:
        raise PromptError(
            f"this model classifies a text at its end-of-text token {token}, which the prompt lacks; add it."
        )
    return len(input_ids) - list(reversed(input_ids)).index(token)


def _positions(config: PreTrainedConfig, longest: int | None) -> int | None:
    """Positions start after the padding index, and the model predicts one token ahead."""
    return longest - config.pad_token_id - 2 if longest and config.model_type == "prophetnet" else longest


@hookimpl
def vcls_architectures() -> list[Architecture]:
    at_eos = ("bart", "bigbird_pegasus", "mvp", "t5", "mt5", "umt5")
    out = "classification_head.out_proj"
    return [
        EncoderDecoder("encoder-decoder", *at_eos, final_linear=out),
        EncoderDecoder("mbart", "mbart", "plbart", final_linear=out, wraps=True),
        EncoderDecoder("t5gemma", "t5gemma", "t5gemma2", final_linear="score.out_proj", at_eos=False),
        ProphetNet(),
        DecoderAlone(),
    ]
