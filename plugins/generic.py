"""Every base or causal model that no other plugin claims."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from vllm_cls.adapters import Decoder, Encoder
from vllm_cls.adapters.families import base_class
from vllm_cls.errors import ModelError
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from vllm_cls.architecture import LinearHead


class Generic(Encoder):
    """A decoder where the text is read so by transformers' own language model of that config, else an encoder.

    Nothing here is taken on trust: the head's code and the packing are checked against the model's own
    forward when it is loaded, and a model that differs runs through that forward.
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
        if getattr(text, "is_decoder", None) is False:  # an encoder that could also be a decoder (BERT's family)
            return "CLS"
        kinds = (type(text), type(config))
        writes = any(each in MODEL_FOR_CAUSAL_LM_MAPPING for each in kinds)
        return "LAST" if writes or any(map(_is_causal, kinds)) else "CLS"

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
    """Whether the base model's own file makes causal masks only."""
    try:
        names = vars(sys.modules[base_class(config_class).__module__])
    except ModelError:
        return False
    return "create_causal_mask" in names and "create_bidirectional_mask" not in names


@hookimpl
def vcls_architectures() -> list[Generic]:
    return [Generic()]
