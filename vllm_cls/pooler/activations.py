"""Activations: functions from logits to probabilities.

The order is vLLM's: `problem_type` as transformers' ForSequenceClassificationLoss reads it, then the
two keys that Sentence Transformers writes, then softmax (sigmoid where there is one label).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ConfigError, ModelError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Activation = Callable[[torch.Tensor], torch.Tensor]
_TRIED = (-30.0, -2.0, 0.0, 2.0, 30.0)


def identity(logits: torch.Tensor) -> torch.Tensor:
    """The logits themselves (regression)."""
    return logits


def softmax_or_sigmoid(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the labels, or sigmoid where there is a single one."""
    return torch.sigmoid(logits) if logits.shape[-1] < 2 else torch.softmax(logits, dim=-1)


_softmax = functools.partial(torch.softmax, dim=-1)


def settled(activation: Activation, num_labels: int) -> Activation:
    """The same activation, for so many labels alone."""
    if activation is not softmax_or_sigmoid:
        return activation
    return torch.sigmoid if num_labels < 2 else _softmax


BY_PROBLEM_TYPE: dict[str, Activation] = {
    "regression": identity,
    "single_label_classification": softmax_or_sigmoid,
    "multi_label_classification": torch.sigmoid,
}


def probabilities_by(activation: Activation, problem_type: str | None, num_labels: int) -> Activation | None:
    """What gives the probabilities of a model's labels: its own activation, or what its problem type means; None: nothing.

    A cross-encoder may be saved with an identity, so that its scores are logits. Its labels have probabilities all the
    same, those that transformers gives. A regression has none.
    """
    if problem_type == "regression":
        return None
    if gives_probabilities(activation, num_labels):
        return activation
    return softmax_or_sigmoid if problem_type is None else BY_PROBLEM_TYPE[problem_type]


@functools.lru_cache(maxsize=64)
def gives_probabilities(activation: Activation, num_labels: int) -> bool:
    """Whether an activation maps logits to numbers from 0 to 1, found by running it."""
    indices = torch.arange(len(_TRIED))[:, None] + torch.arange(num_labels)
    output = activation(torch.tensor(_TRIED)[indices % len(_TRIED)])
    return bool(((output >= 0) & (output <= 1)).all())


def activation_for(config: PreTrainedConfig, registered: Mapping[str, Activation] | None = None) -> Activation:
    """The activation that a model's config asks for.

    Args:
        config: reads `problem_type`, `sentence_transformers["activation_fn"]` and
            `sbert_ce_default_activation_function`.
        registered: activations of plugins, by the name a config may carry.

    Raises:
        ConfigError: `problem_type` is unknown.
        ModelError: the Sentence Transformers key names something outside `torch.nn.modules`.
    """
    problem_type = config.problem_type
    if problem_type is not None:
        if problem_type not in BY_PROBLEM_TYPE:
            known = ", ".join(BY_PROBLEM_TYPE)
            raise ConfigError(
                f"problem_type={problem_type!r} is unknown; use {known} (--hf-overrides)."
                f"{nearest(str(problem_type), BY_PROBLEM_TYPE)}"
            )
        return BY_PROBLEM_TYPE[problem_type]
    sentence_transformers: Any = getattr(config, "sentence_transformers", None)
    name = sentence_transformers.get("activation_fn") if isinstance(sentence_transformers, dict) else None
    name = name or getattr(config, "sbert_ce_default_activation_function", None)
    if not name:
        return softmax_or_sigmoid
    if registered and name in registered:
        return registered[name]
    return _torch_activation(name)


def _torch_activation(name: str) -> Activation:
    """The module `torch.nn.modules.….Name`; Sigmoid and Softmax mean "by the number of labels", as in vLLM."""
    module_name, _, class_name = name.rpartition(".")
    module = getattr(torch.nn, class_name, None)
    known = f"{module_name}.".startswith("torch.nn.modules.") or module_name == "torch.nn"
    if not known or not (isinstance(module, type) and issubclass(module, torch.nn.Module)):
        raise ModelError(
            f"the config's activation function {name!r} is not one of torch.nn.modules.*; set problem_type with "
            "--hf-overrides, or correct the config."
        )
    if class_name == "Identity":
        return identity
    if class_name in ("Sigmoid", "Softmax"):
        return softmax_or_sigmoid
    try:
        instance: Activation = module()
        keeps_shape = instance(torch.zeros(2, 3)).shape == (2, 3)
    except Exception as error:
        raise _no_activation(name, str(error)) from error
    if not keeps_shape:
        raise _no_activation(name, "it gives another number of them")
    return instance


def _no_activation(name: str, reason: str) -> ModelError:
    return ModelError(
        f"the config's activation function {name!r} does not take logits ({reason}); set problem_type with --hf-overrides, or "
        "correct the config."
    )
