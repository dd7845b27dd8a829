"""The hooks. A plugin is a module (or object) with functions of these names, marked `@hookimpl`.

It is found through the entry-point group `vllm_cls`; the built-in plugins are found the same way. Of hooks that take one
answer, a third party's comes before the built-in one; None leaves it to the next.
"""

# mypy: disable-error-code="empty-body"
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedConfig
    from transformers.decision import DecisionConfig

    from .architecture import (
        Architecture,
        CalibrationRequest,
        HeadResult,
        NamedHeadRequest,
        ScoreTemplate,
        Target,
    )
    from .head_source import Guard, HeadSource

hookspec = pluggy.HookspecMarker("vllm_cls")
hookimpl = pluggy.HookimplMarker("vllm_cls")


@hookspec
def vcls_architectures() -> Sequence[Architecture]:
    """Architectures this plugin knows: which configs they match, and how each becomes a classifier."""


@hookspec
def vcls_head_sources() -> Mapping[str, HeadSource]:
    """Head sources by name, for `--head`.

    A module in the entry-point group `vllm_cls.heads`, which loads nothing heavy by itself, has them in `--help` too.
    """


@hookspec(firstresult=True)
def vcls_calibrate(request: CalibrationRequest) -> HeadResult | None:
    """The head, calibrated on labelled rows, or unchanged; its report says which."""


@hookspec
def vcls_score_templates() -> Sequence[ScoreTemplate]:
    """Prompts that rerankers were trained with, and which models want them."""


@hookspec
def vcls_guards(chat_template: str) -> Guard | None:
    """How a causal language model with this chat template judges texts, where it is one that does."""


@hookspec(firstresult=True)
def vcls_target(
    architecture: Architecture, config: PreTrainedConfig, result: HeadResult, pooling: str
) -> Target | None:
    """The class, config and parameters that hold this head on this backbone without losing anything."""


@hookspec(firstresult=True)
def vcls_named_head(request: NamedHeadRequest) -> Target | None:
    """The class, config and parameters of a classifier to which this head is added."""


@hookspec(firstresult=True)
def vcls_model_card(values: Mapping[str, Any]) -> str:
    """The text of a converted checkpoint's README.md: how its head was made, how to run it."""


@hookspec(firstresult=True)
def vcls_write_checkpoint(plan: Any) -> Any:
    """Write the converted checkpoint that a `ConversionPlan` describes; return a result with `files`, `num_bytes`, `warnings`."""


@hookspec
def vcls_decision_models(folder: Path) -> tuple[PreTrainedConfig, DecisionConfig] | None:
    """Of a folder with a decision head beside a model's weights: the config of both together, and the settings of decisions.

    Not of one whose config.json says what it is; `decision.json` is read without a hook.
    """


@hookspec
def vcls_config_classes() -> Mapping[str, Callable[[], type[PreTrainedConfig]]]:
    """Model types that transformers does not have, and what gives their config classes; called when one is opened."""


@hookspec
def vcls_pooling_methods() -> Mapping[str, Callable[..., Any]]:
    """Pooling methods by name: `(hidden (num_rows, hidden), starts, lengths) -> (num_sequences, hidden)`."""


@hookspec
def vcls_activations() -> Mapping[str, Callable[..., Any]]:
    """Activations by the name a config may carry: `logits (…, num_labels) -> the same shape`.

    One whose numbers are all from 0 to 1, which is tried, gives probabilities.
    """


@hookspec
def vcls_readers() -> Mapping[str, Callable[..., Any]]:
    """Readers of file formats by suffix without the dot: `(path) -> iterator of rows`."""


@hookspec
def vcls_writers() -> Mapping[str, Callable[..., Any]]:
    """Writers of file formats by suffix without the dot: `(path) -> context manager with write(row)`."""


@hookspec
def vcls_auto_classes() -> Sequence[tuple[type, type]]:
    """Pairs (config class, classifier class) of our own model types, for transformers' Auto classes.

    The end of the classifier's name says for which Auto class it is, as in transformers.
    """


@hookspec
def vcls_server_routes(model: Any) -> Any:
    """A FastAPI router of routes for `vcls serve`, or None; `model` is a `vllm_cls.server.served_model.ServedModel`."""
