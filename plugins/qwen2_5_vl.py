"""Qwen2.5-VL; transformers has no classifier class, so `as_seq_cls_model` makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_cls.adapters import Decoder
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Qwen2_5_VL(Decoder):  # the family's own spelling
    """Texts run through the language model alone: its three rotary axes then all count tokens.

    Rows with images run through the whole model, which puts the towers' outputs in their places.
    """

    name = "qwen2_5_vl"
    model_types = ("qwen2_5_vl",)

    def backbone(self, model: PreTrainedModel) -> PreTrainedModel:
        language_model: PreTrainedModel = model.base_model.language_model
        return language_model


@hookimpl
def vcls_architectures() -> list[Qwen2_5_VL]:
    return [Qwen2_5_VL()]
