"""BLT: bytes as tokens, grouped into patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_cls.adapters import Decoder
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Blt(Decoder):
    """The hidden states are the byte decoder's, whose sizes are in a config of its own."""

    name = "blt"
    model_types = ("blt",)

    def complete(self, config: PreTrainedConfig) -> None:
        config.hidden_size = config.decoder_config.hidden_size
        config.num_hidden_layers = config.decoder_config.num_hidden_layers  # a cache is made by it

    def max_positions(self, config: PreTrainedConfig) -> int:
        return int(config.decoder_config.max_position_embeddings)


@hookimpl
def vcls_architectures() -> list[Blt]:
    return [Blt()]
