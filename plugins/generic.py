"""Every base or causal model that no other plugin claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from vllm_cls.adapters import Decoder, Encoder
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from vllm_cls.architecture import LinearHead


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

        # Encoders that can also be decoders (BERT's family) have is_decoder, and it is False.
        encoder = getattr(config, "is_decoder", None) is False or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
        return "CLS" if encoder and not config.is_encoder_decoder else "LAST"

    def head(self, model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor] | None:
        return self._decoder.head(model) if hasattr(model, "score") else super().head(model)

    def express(
        self, config: PreTrainedConfig, linear: LinearHead, *, on_features: bool
    ) -> Mapping[str, torch.Tensor] | None:
        if self.pooling(config) == "LAST":
            return self._decoder.express(config, linear, on_features=on_features)
        return super().express(config, linear, on_features=on_features)


@hookimpl
def vcls_architectures() -> list[Generic]:
    return [Generic()]
