"""EuroBERT: bidirectional, with the head on the first token, on the mean, or on every token before the mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm_cls.adapters import Encoder
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from vllm_cls.pooler.methods import PoolingMethod


class EuroBert(Encoder):
    """The config's `classifier_pooling` chooses: bos, mean or late."""

    name = "eurobert"
    model_types = ("eurobert",)

    def pooling(self, config: PreTrainedConfig) -> str:
        return "CLS" if config.classifier_pooling == "bos" else "MEAN"

    def head(self, model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor] | None:
        return model.get_submodule(self.final_linear) if _is_late(model) else super().head(model)

    def pooling_method(self, model: Any, method: PoolingMethod) -> PoolingMethod:
        if not _is_late(model):
            return method

        def late(hidden: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            """The mean commutes with the last linear layer, but not with what comes before."""
            return method(model.activation(model.dense(hidden.to(model.dense.weight.dtype))), starts, lengths)

        return late


def _is_late(model: PreTrainedModel) -> bool:
    """Whether it is transformers' own class (ours has another head), and averages at the end."""
    return hasattr(model, "dense") and model.config.classifier_pooling == "late"


@hookimpl
def vcls_architectures() -> list[EuroBert]:
    return [EuroBert()]
