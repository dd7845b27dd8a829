"""Runs the model for a conversion: pooled states to fit a head on, and logits of a finished classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from ..architecture import Target
from ..config import ModelConfig, RuntimeConfig
from ..errors import ModelError, PromptError
from ..inputs.tokenization import PromptProcessor, Truncation
from ..model.loading.classifier import Classifier, load_target, pooling_of
from ..model.loading.form_choice import make_runner
from ..model.loading.source import ModelSource
from ..model.loading.weights import Placement, load_weights
from ..model.opening import longest_prompt, make_engine
from ..runtime.bars import UseTqdm, bar
from ..runtime.machine.device import choose_device, choose_dtype

T = TypeVar("T")


@dataclass(frozen=True)
class PooledStates:
    """`pooled` `(num_prompts, hidden)`; `features`, the same after a trained pooler, or None; both float32.

    `truncated` counts the prompts that were cut to the model's length.
    """

    pooled: torch.Tensor
    features: torch.Tensor | None
    truncated: int


def pooled_states(
    source: ModelSource,
    options: ModelConfig,
    processor: PromptProcessor,
    prompts: Sequence[Any],
    pooling: str,
    max_num_batched_tokens: int | None,
    use_tqdm: UseTqdm = False,
) -> PooledStates:
    """Run the frozen model over labelled prompts.

    Args:
        use_tqdm: as for `LLM.classify`.

    Raises:
        PromptError: a prompt is bad; a head is not fitted on what is left.
    """
    device = choose_device(options.device)
    config = source.config
    if config.is_encoder_decoder:
        raise ModelError(
            f"{options.model} is an encoder-decoder, whose states a head cannot be fitted on yet; train its own head."
        )
    model, missing = load_weights(
        source,
        source.architecture.classifier_class(type(config)),
        config,
        Placement(choose_dtype(options.dtype, device), device, options.allow_pickle),
        headless=True,
    )
    classifier = Classifier(source, model, config, pooling, has_head=False)
    tokenized = _all_good(processor.tokenize(prompts, Truncation(-1)))
    runtime = RuntimeConfig(max_num_batched_tokens)
    engine = make_engine(make_runner(classifier, pooling, longest := processor.max_model_len), runtime, longest)
    try:
        with bar(use_tqdm, len(prompts), engine.counters, "States of training rows"):
            answers = _all_good(engine.states([each.sequence for each in tokenized]))
    finally:
        engine.close()
    pooled = torch.stack([answer.row for answer in answers])
    features = None
    final = source.architecture.final_linear
    inner_is_trained = all(name.startswith(f"{final}.") for name in missing)
    if inner_is_trained and pooling == source.architecture.pooling(config):
        features = _features(source, model, final, pooled.to(device))
    return PooledStates(pooled, features, sum(each.truncated for each in tokenized))


def classifier_logits(
    source: ModelSource,
    target: Target,
    options: ModelConfig,
    processor: PromptProcessor,
    prompts: Sequence[Any],
    max_num_batched_tokens: int | None,
    *,
    head_is_trained: bool,
    use_tqdm: UseTqdm = False,
) -> tuple[torch.Tensor, int]:
    """Logits `(num_prompts, num_labels)`, float32, of the classifier that a target describes.

    Args:
        head_is_trained: as of `Classifier`.
        use_tqdm: as for `LLM.classify`.

    Returns:
        The logits, and how many prompts were cut to the model's length.

    Raises:
        PromptError: a prompt is bad.
    """
    device = choose_device(options.device)
    placement = Placement(choose_dtype(options.dtype, device), device, options.allow_pickle)
    model = load_target(source, target, placement)
    pooling = pooling_of(source, model)
    classifier = Classifier(source, model, model.config, pooling, head_is_trained=head_is_trained)
    runner = make_runner(classifier, pooling, longest := processor.max_model_len)
    shorter = replace(processor, max_model_len=longest_prompt(runner, longest), skipped_pad=runner.skipped_pad)
    tokenized = _all_good(shorter.tokenize(prompts, Truncation(-1)))
    engine = make_engine(runner, RuntimeConfig(max_num_batched_tokens), longest)
    try:
        with bar(use_tqdm, len(prompts), engine.counters, "Logits of calibration rows"):
            answers = _all_good(engine.logits([each.sequence for each in tokenized]))
    finally:
        engine.close()
    return torch.stack([answer.row for answer in answers]), sum(each.truncated for each in tokenized)


def _features(source: ModelSource, model: Any, final: str, pooled: torch.Tensor) -> torch.Tensor | None:
    """What the head's last linear layer gets, where the layers before it are trained; None where there are none."""
    modules = dict(model.named_modules())
    if hasattr(model, "pooled_logits") or final not in modules:  # one linear layer, or a head nobody described
        return None
    parent, _, name = final.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Identity())
    head = source.architecture.head(model.float())
    if head is None:
        return None
    with torch.inference_mode():
        features = head(pooled).float().cpu()
    return None if torch.equal(features, pooled.cpu()) else features


def _all_good(results: Sequence[T | PromptError]) -> list[T]:
    good = []
    for index, each in enumerate(results):
        if isinstance(each, PromptError):
            raise PromptError(f"training row {index}: {each}")
        good.append(each)
    return good
