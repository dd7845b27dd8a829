"""CANINE: characters as tokens."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vllm_cls.adapters import Encoder
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Canine(Encoder):
    """Token ids are Unicode code points, hashed into embeddings; the config has no vocab_size."""

    name = "canine"
    model_types = ("canine",)
    tanh_dense = "canine.pooler.dense"

    def vocab_size(self, config: PreTrainedConfig) -> int:
        return sys.maxunicode + 1

    def min_tokens(self, config: PreTrainedConfig) -> int:
        return int(config.downsampling_rate)


@hookimpl
def vcls_architectures() -> list[Canine]:
    return [Canine()]
