"""A classifier in memory: the model with its head in place."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...architecture import OWN_MODEL_TYPE, Architecture, Target
from ...checkpoint.sentence_transformer import Embedder, read_embedder
from ...config import ModelConfig
from ...errors import ConfigError
from .guard import OpenGuard, open_guard
from .head_choice import head_at_load, lacks_head, make_head, target_for
from .source import ModelSource, open_source
from .weights import Placement, load_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Classifier:
    """A classifier in memory.

    Args:
        source: what it was made from.
        model: in eval mode, on its device.
        config: of `model`; of a guard model, with its verdicts as the labels.
        pooling: of the classifier, before any override.
        has_head: False for `convert="none"`, which gives embeddings, and where LoRA adapters bring the heads.
        missing: parameters that the checkpoint lacks and adapters supply; in the model they are not initialised.
        embedder: of a Sentence Transformers bi-encoder that was opened as such.
        head_is_trained: within its class, so that the pooling of that class is the right one.
        guard: of a guard model that was opened as such.
    """

    source: ModelSource
    model: PreTrainedModel
    config: Any
    pooling: str
    has_head: bool = True
    missing: frozenset[str] = frozenset()
    embedder: Embedder | None = None
    head_is_trained: bool = False
    guard: OpenGuard | None = None

    @property
    def task(self) -> str:
        """What it does: "classify", "token_classify", or "embed" where neither it nor an adapter has a head."""
        return self.source.task if self.has_head or self.missing else "embed"

    @property
    def architecture(self) -> Architecture:
        return self.source.architecture

    def why_headless(self, name: str) -> str | None:
        """Why it has no labels and no scores, and what to do, for errors; None where it has a head.

        Args:
            name: what the caller calls the model.
        """
        if self.has_head:
            return None
        if self.missing:
            return "this model has no head of its own; it runs with a lora_request whose adapter has one."
        made = f"`vcls convert {name} OUT --convert classify --head …` makes a classifier of it."
        if self.embedder is None:
            return f"{name} has no head as it was opened; only pooling_task='embed' runs. {made}"
        return (
            f"{name} is an embedder (a Sentence Transformers bi-encoder), which has no head: it gives embeddings, no labels and "
            f"no scores. Use embed (pooling_task='embed', /pooling), and compare embeddings by their cosine; {made}"
        )


def load(options: ModelConfig, placement: Placement, *, adapters_have_heads: bool = False) -> Classifier:
    """Load a model as `options.convert` says.

    Args:
        adapters_have_heads: accept a model without a head, since LoRA adapters have theirs.

    Raises:
        ModelError: it cannot be loaded, or has no head and none was asked for.
    """
    source = open_source(options)
    embedder = None
    heads = adapters_have_heads or (source.adapter is not None and not lacks_head(source))
    if options.convert in ("auto", "none") and not source.is_classifier and not heads:
        embedder = read_embedder(
            source.checkpoint, is_encoder_decoder=source.config.is_encoder_decoder, allow_pickle=options.allow_pickle
        )
    if embedder is not None and source.pickled_head:
        warnings.warn(
            f"{source.checkpoint.name}: {source.pickled_head}, SetFit's pickled head, is left out.", stacklevel=2
        )
    is_embedder = embedder is not None and "classifier_from_token" not in options.hf_overrides
    if is_embedder or (options.convert == "none" and not source.is_classifier):
        return _without_head(source, embedder, placement)
    if adapters_have_heads and lacks_head(source) and not source.is_classifier:
        return _for_adapters(source, placement)
    guard = open_guard(source, options)
    if guard is None:
        head = head_at_load(source, options)
    else:
        head = make_head(source, "tokens", {"token_ids": guard.token_ids})
    target = target_for(source, head)
    model = load_target(source, target, placement)
    config = model.config if guard is None else guard.labelled(model.config)
    return Classifier(source, model, config, pooling_of(source, model), head_is_trained=head.head.trained, guard=guard)


def pooling_of(source: ModelSource, model: PreTrainedModel) -> str:
    """The pooling that a classifier's own forward does."""
    own: str | None = getattr(model, "pooling", None) if hasattr(model, "pooled_logits") else None
    return own or source.architecture.pooling(source.backbone_config)


def _without_head(source: ModelSource, embedder: Embedder | None, placement: Placement) -> Classifier:
    model, _ = _bare(source, placement)
    pooling = source.pooling if embedder is None else embedder.pooling
    return Classifier(source, model, model.config, pooling, has_head=False, embedder=embedder)


def _for_adapters(source: ModelSource, placement: Placement) -> Classifier:
    model, missing = _bare(source, placement)
    return Classifier(
        source, model, model.config, pooling_of(source, model), False, frozenset(missing), head_is_trained=True
    )


def _bare(source: ModelSource, placement: Placement) -> tuple[PreTrainedModel, set[str]]:
    """The backbone's weights in a classifier class whose head stays unused; and what of the head is missing."""
    classifier_class = source.architecture.classifier_class(type(source.config))
    return load_weights(source, classifier_class, source.config, placement, headless=True)


def load_target(source: ModelSource, target: Target, placement: Placement) -> PreTrainedModel:
    """The source's weights and the target's head in one model."""
    import torch

    tensors = target.head_tensors or {}
    made_now = tensors or target.moved or target.config.model_type != source.config.model_type
    if placement.parts and made_now:
        raise ConfigError(
            "device_map takes classifiers as their files are, and this one's head would be made now; `vcls convert` first."
        )
    if target.config.model_type == OWN_MODEL_TYPE and source.config.model_type != OWN_MODEL_TYPE:
        backbone = _bare(source, placement)[0].base_model
        wrapped: Any = target.classifier_class
        model: PreTrainedModel = wrapped(target.config, backbone=backbone).to(placement.device).eval()
    else:
        model, _ = load_weights(source, target.classifier_class, target.config, placement, may_miss=tensors)
    for name, tensor in tensors.items():
        parameter = model.get_parameter(name)
        parameter.data = tensor.to(device=placement.device, dtype=torch.float32)
    known = dict(model.named_parameters())
    for stored, name in target.moved.items():
        if name not in known:  # kept in the checkpoint for heads to come
            continue
        known[name].data = source.checkpoint.tensor(stored).to(device=placement.device, dtype=placement.dtype)
    return model
