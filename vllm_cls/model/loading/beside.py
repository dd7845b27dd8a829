"""What lies beside a model's weights: the settings or the head of its decisions, a LoRA adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...architecture import DECISIONS
from ...checkpoint.files import Checkpoint
from ...checkpoint.peft_adapter import PeftAdapter, read_adapter
from ...compat.transformers_calls import model_errors
from ...config import ModelConfig
from ...decisions.settings import has_settings, read_settings
from ...errors import ConfigError
from ...registry import registry

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from transformers.decision import DecisionConfig


def decisions_beside(
    checkpoint: Checkpoint, options: ModelConfig
) -> tuple[PreTrainedConfig | None, DecisionConfig | None]:
    """The settings of a model's decisions, None where it answers none; and its config where a head lies beside its weights.

    Raises:
        ModelError: the settings cannot be read.
    """
    if options.convert not in ("auto", "decide"):
        return None, None
    with model_errors(f"{checkpoint.name}: the files of its decision head cannot be read"):
        beside = registry().call("vcls_decision_models", folder=checkpoint.folder)
    if beside:
        config, settings = beside[0]
        return config, settings
    says_so = has_settings(checkpoint.beside) or any(name.endswith(DECISIONS) for name in checkpoint.class_names)
    if options.convert == "decide" or says_so:
        return None, read_settings(checkpoint.beside, checkpoint.name)
    return None, None


def adapter_beside(
    checkpoint: Checkpoint, options: ModelConfig, decisions: DecisionConfig | None
) -> PeftAdapter | None:
    """The adapter to merge: the one in the model's folder, as in transformers, or that of the option `lora`, or for decisions.

    Raises:
        ConfigError: both.
    """
    if not checkpoint.has_adapter:
        beside = None if decisions is None else decisions.adapter
        if beside is not None and options.lora:
            raise ConfigError(f"{checkpoint.name}: its decisions name the adapter {beside}; leave --lora out.")
        lora = options.lora or (None if beside is None else str(checkpoint.beside / beside))
        return read_adapter(lora, allow_pickle=options.allow_pickle) if lora else None
    if options.lora:
        raise ConfigError(
            f"{checkpoint.name} has an adapter of its own beside it, which is merged first; write that (`vcls convert "
            f"{checkpoint.name} OUT`), and give --lora with the result."
        )
    return read_adapter(str(checkpoint.folder), allow_pickle=options.allow_pickle)
