"""Checks of a request's task and parameters against a loaded model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ..decisions.heads import DecisionHead, LabelHead
from ..errors import ConfigError
from ..params import PoolingParams
from ..runtime.adapter import LoRAAdapter

if TYPE_CHECKING:
    from .loaded_model import LoadedModel


def check_task(
    loaded: LoadedModel, task: str, adapters: Iterable[LoRAAdapter | None], method: str | None = None
) -> None:
    """Raise `ConfigError` unless the model, with each of these adapters or (None) without one, supports a task.

    Args:
        method: the caller's name for it, such as "score".
    """
    if loaded.task == "token_classify" and task != loaded.task:
        raise ConfigError(
            f"this model classifies tokens, not texts, so it cannot {method or task}; use LLM.token_classify, or "
            "encode(pooling_task='token_classify')."
        )
    if task == "classify" and loaded.pooler.config.task == "token_classify":
        raise ConfigError(
            "this model judges the steps of a text, not the whole; use LLM.reward, or "
            "LLM.encode(pooling_task='token_classify')."
        )
    if task == "classify" and isinstance(loaded.classifier.model, DecisionHead):
        raise ConfigError("this model answers questions, and has no labels; use LLM.decide.")
    if task == "classify" and isinstance(loaded.classifier.model, LabelHead):
        raise ConfigError(
            "this model has no labels of its own; name some with candidate_labels (--candidate-labels).",
            "candidate_labels",
        )
    if task == "embed":
        return
    headless = loaded.classifier.why_headless(loaded.options.model)
    if headless is not None and not all(adapters):
        raise ConfigError(headless, "lora_request" if loaded.classifier.missing else None)
    if task == "token_classify" and loaded.task != task:
        whole = loaded.engine.runner.head is None or loaded.engine.runner.mode.whole
        if whole:
            raise ConfigError("token_classify needs a head that runs on any token's state; this model's does not.")


def own_tasks(loaded: LoadedModel) -> frozenset[str]:
    """The tasks that a model supports without an adapter."""
    found = set()
    for task in ("classify", "token_classify", "embed"):
        with suppress(ConfigError):
            check_task(loaded, task, [None])
            found.add(task)
    return frozenset(found)


def check_params(loaded: LoadedModel, task: str, params: Sequence[PoolingParams]) -> None:
    """Raise `ConfigError` if a request sets a parameter that its task does not have."""
    judges_steps = task == "token_classify" and loaded.pooler.config.tok_pooling_type == "STEP"
    for each in params:
        if not judges_steps and (each.step_tag_id is not None or each.returned_token_ids is not None):
            raise ConfigError(
                f"step_tag_id and returned_token_ids are for the steps of a process reward model (STEP pooling), not for "
                f"{task}; leave them out, or open the model with pooler_config={{'tok_pooling_type': 'STEP'}}."
            )
        if task == "embed" and each.head_name is not None:
            raise ConfigError(f"head_name={each.head_name!r}: an embedding has no head; leave it out.", "head_name")
        if task != "embed" and each.dimensions is not None:
            raise ConfigError(
                f"dimensions={each.dimensions} is for embeddings, not for {task}; leave it out.", "dimensions"
            )
        if each.extra_kwargs:
            raise ConfigError(
                f"extra_kwargs has {', '.join(map(str, each.extra_kwargs))}: options of LLM.score, not of {task}."
            )
