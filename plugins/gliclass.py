"""GLiClass: models that read a text and the labels that it may have in one prompt (uni-encoders)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm_cls.adapters import Encoder
from vllm_cls.errors import ModelError
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

_BACKBONES = ("bert", "deberta", "deberta-v2", "electra", "modernbert")
_PLAIN = {
    "squeeze_layers": False, "encoder_layer_id": -1, "use_segment_embeddings": False, "use_calibrator": False,
}  # fmt: skip
"""Parts that are not there, and the values that say so."""


class GLiClass(Encoder):
    """Class tokens before the labels; a scorer compares their states with the text's."""

    name = "gliclass"
    model_types = ("GLiClass",)
    class_names = ("GLiClassModel",)

    def complete(self, config: PreTrainedConfig) -> None:
        if config.architecture_type != "uni-encoder":
            raise ModelError(
                f"a GLiClass model of the kind {config.architecture_type!r}; only those of the kind 'uni-encoder' run here."
            )
        backbone = config.get_text_config().model_type
        if backbone not in _BACKBONES:
            raise ModelError(f"a GLiClass model on {backbone}; it runs here on {', '.join(_BACKBONES)}.")
        for name, plain in _PLAIN.items():
            if getattr(config, name, plain) != plain:
                raise ModelError(f"a GLiClass model with {name}={getattr(config, name)!r}, which does not run here.")
        config.architectures = ["GLiClassForSequenceClassification"]

    def classifier_class(self, config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
        from vllm_cls.plugins.gliclass_model import GLiClassForSequenceClassification

        return GLiClassForSequenceClassification

    def backbone(self, model: PreTrainedModel) -> PreTrainedModel:
        found: PreTrainedModel = model.base_model.encoder_model
        return found

    def head(self, model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
        from vllm_cls.plugins.gliclass_model import StatesAsTheyAre

        return StatesAsTheyAre(model.base_model)


@functools.cache
def _config_class() -> type[PreTrainedConfig]:
    from vllm_cls.plugins.gliclass_model import GLiClassConfig

    return GLiClassConfig


@hookimpl
def vcls_config_classes() -> dict[str, Callable[[], type[PreTrainedConfig]]]:
    return {"GLiClass": _config_class}


@hookimpl
def vcls_architectures() -> list[GLiClass]:
    return [GLiClass()]
