"""Cohere Compass (text): the config says which state is pooled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_cls.adapters import Decoder
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class CohereCompass(Decoder):
    """A decoder with `score`, on the first or last token's logits or the mean of all."""

    name = "cohere_compass"
    model_types = ("cohere_compass_text",)

    def pooling(self, config: PreTrainedConfig) -> str:
        return {"bos": "CLS", "mean": "MEAN"}.get(getattr(config, "pooling", None) or "eos", "LAST")


@hookimpl
def vcls_architectures() -> list[CohereCompass]:
    return [CohereCompass()]
