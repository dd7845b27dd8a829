"""Qwen2.5-Math's reward models of whole answers (`Qwen2ForRewardModel`) and of steps (`Qwen2ForProcessRewardModel`).

Their config says `qwen2`; what their own code hard-codes is here, as in vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_cls.adapters import Decoder
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_STEP_TAG_ID = 151651  # `<extra_0>`, which ends a step


class Qwen2Reward(Decoder):
    """One number for the whole text, from its last token, without an activation."""

    name = "qwen2-reward"
    class_names = ("Qwen2ForRewardModel",)
    final_linear = "score.2"

    def classifier_class(self, config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
        from transformers import Qwen2Model

        from vllm_cls.adapters import as_reward_model

        return as_reward_model(Qwen2Model, self.class_names[0])

    def complete(self, config: PreTrainedConfig) -> None:
        if config.num_labels != 1:
            config.num_labels = 1
        config.problem_type = config.problem_type or "regression"


class Qwen2ProcessReward(Qwen2Reward):
    """Two labels for each step, bad and good, at the token that ends the step."""

    name = "qwen2-process-reward"
    class_names = ("Qwen2ForProcessRewardModel",)

    def complete(self, config: PreTrainedConfig) -> None:
        if config.num_labels != 2:
            config.num_labels = 2
        settings: dict[str, Any] = getattr(config, "vcls", None) or {}
        steps = {"task": "token_classify", "tok_pooling_type": "STEP", "step_tag_id": _STEP_TAG_ID}
        config.vcls = {**settings, "pooler_config": {**steps, **(settings.get("pooler_config") or {})}}


@hookimpl
def vcls_architectures() -> list[Qwen2Reward]:
    return [Qwen2Reward(), Qwen2ProcessReward()]
