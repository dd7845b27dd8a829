"""`load_classifier`: a converted checkpoint as an ordinary transformers model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import ModelConfig
from .errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_classifier(path: str, **options: Any) -> PreTrainedModel:
    """A converted checkpoint as a transformers model, with `.logits`, ready for the Trainer.

    Args:
        options: `dtype`, `device`, `revision`, `trust_remote_code`, `allow_pickle`, `hf_overrides`, `plugin`, `convert`.

    Raises:
        ModelError: the model cannot be loaded, or has no head.
    """
    from .model.loading.classifier import load
    from .model.loading.weights import Placement
    from .runtime.machine.device import choose_device, choose_dtype

    config = ModelConfig.from_options(path, **{"device": "cpu", "dtype": "float32", **options})
    if config.convert == "none":
        raise ConfigError(
            "load_classifier(convert='none') would have no head; load the bare model with transformers' AutoModel."
        )
    if config.num_processes > 1:
        raise ConfigError("load_classifier gives a model of one process; LLM opens one on several.")
    device = choose_device(config.device)
    return load(config, Placement(choose_dtype(config.dtype, device), device, config.allow_pickle)).model
