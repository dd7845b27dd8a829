"""Every base or causal model that no other plugin claims."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm_cls.adapters import Decoder, Encoder
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


class Generic(Encoder):
    """A decoder where transformers has a causal LM of that config, else an encoder.

    Nothing here is taken on trust: the head's code and the packing are checked against the model's own
    forward when it is loaded, and a model that differs runs through that forward.
    """

    name = "generic"
    generic = True
    final_linear = "score"
    _decoder = Decoder()

    def pooling(self, config: PreTrainedConfig) -> str:
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        if config.is_encoder_decoder:
            return "LAST"
        causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and getattr(config, "is_decoder", True) is not False
        return "LAST" if causal or not hasattr(config, "is_decoder") else "CLS"

    def head(self, model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor] | None:
        return (self._decoder if hasattr(model, "score") else super()).head(model)


@hookimpl
def vcls_architectures() -> list[Generic]:
    return [Generic()]
