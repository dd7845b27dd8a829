"""The generic architecture: every base or causal model that no other plugin matches."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import TYPE_CHECKING

from vllm_cls.adapters import Decoder, Encoder
from vllm_cls.adapters.classifiers.families import base_class
from vllm_cls.errors import ModelError
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from vllm_cls.architecture import LinearHead


class Generic(Encoder):
    """A decoder (LAST pooling) where transformers' masks for the config are causal, else an encoder (CLS or MEAN).

    The head's code and the packing are checked against the model's own forward when it is loaded; a model that differs
    runs through that forward.
    """

    name = "generic"
    generic = True
    final_linear = "score"
    _decoder = Decoder()

    def pooling(self, config: PreTrainedConfig) -> str:
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING

        text = config.get_text_config(decoder=True)  # which reads the texts of a model for images or sound
        if config.is_encoder_decoder or text.is_encoder_decoder or type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING:
            return "LAST"
        kinds = (type(text), type(config))
        if any(map(_is_causal, kinds)):
            return "LAST"
        if getattr(text, "is_decoder", None) is False:  # an encoder that could also be a decoder (BERT's family)
            return "CLS"
        if any(each in MODEL_FOR_CAUSAL_LM_MAPPING for each in kinds):
            return "LAST"
        return "MEAN" if getattr(config, "classifier_pooling", None) == "mean" else "CLS"  # ModernVBERT, UltraBERT

    def head(self, model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor] | None:
        if hasattr(model, "score"):
            return self._decoder.head(model)
        # An encoder-decoder's own class makes the decoder's inputs in its forward.
        return None if model.config.is_encoder_decoder else super().head(model)

    def express(
        self, config: PreTrainedConfig, linear: LinearHead, *, on_features: bool
    ) -> Mapping[str, torch.Tensor] | None:
        if self.pooling(config) == "LAST":
            return self._decoder.express(config, linear, on_features=on_features)
        return super().express(config, linear, on_features=on_features)


def _is_causal(config_class: type[PreTrainedConfig]) -> bool:
    """Whether a base model's forward, or else its module, makes causal masks."""
    try:
        model = base_class(config_class)
    except ModelError:
        return False
    for names in (_names_in(inspect.unwrap(model.forward).__code__), vars(sys.modules[model.__module__])):
        masks = [name for name in names if name.startswith("create_") and name.endswith("_mask")]
        if masks:
            return all("causal" in name or "recurrent" in name for name in masks)
    return False


def _names_in(code: CodeType) -> Iterator[str]:
    """The names that a function refers to, nested functions included."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names_in(inner)


@hookimpl
def vcls_architectures() -> list[Generic]:
    return [Generic()]
