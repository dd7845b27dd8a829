"""Loads weights into a classifier class; missing, misshapen and non-finite tensors are refused.

They go through transformers' loader: onto the meta device first, then, tensor by tensor, from
safetensors to where they live (accelerate's device map).
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checkpoint.files import Checkpoint
from ...checkpoint.name_rules import Family, Reader, Unused, in_backbone
from ...checkpoint.peft_adapter import merge_into
from ...compat.stand_ins import standing_in
from ...compat.transformers_calls import hints, model_errors, no_larger_than
from ...compat.transformers_logging import quiet
from ...errors import ModelError
from .source import ModelSource

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Placement:
    """How weights are read, and where they live.

    Args:
        allow_pickle: read `.bin` files too.
        tensor_parallel_size: processes that hold a part of each weight; this one is among them.
        parts: `device_map`, `max_memory` and `offload_folder` of `from_pretrained`, where several devices hold the model.
        stage: the number of this process and of all, where each holds some of the layers.
    """

    dtype: torch.dtype
    device: torch.device
    allow_pickle: bool = False
    tensor_parallel_size: int = 1
    stage: tuple[int, int] | None = None
    parts: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """The arguments of `from_pretrained`."""
        from transformers.distributed import DistributedConfig

        options: dict[str, Any] = {"dtype": self.dtype, "weights_only": True}
        options["use_safetensors"] = None if self.allow_pickle else True
        if self.tensor_parallel_size > 1:
            return {**options, "distributed_config": DistributedConfig(tp_size=self.tensor_parallel_size)}
        return {**options, "device_map": {"": self.device}, **self.parts}


def load_weights(
    source: ModelSource,
    classifier_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    placement: Placement,
    *,
    may_miss: Iterable[str] = (),
    headless: bool = False,
) -> tuple[PreTrainedModel, set[str]]:
    """Read a checkpoint into a classifier class.

    Args:
        may_miss: parameters that the caller sets itself.
        headless: the caller uses the backbone alone, so parameters outside it may be missing.

    Returns:
        The model in eval mode, and which of `may_miss` were missing.

    Raises:
        ModelError: parameters are missing, have another shape, or are not finite.
    """
    options = placement.options()
    if placement.stage is not None:
        from .stage_class import stage_class

        classifier_class = stage_class(classifier_class, source.architecture, *placement.stage)
    checkpoint = source.checkpoint
    prefix = classifier_class.base_model_prefix
    key_mapping = {**(checkpoint.key_mapping(prefix) or {}), **_older_names(checkpoint, classifier_class)}
    if key_mapping:
        options["key_mapping"] = key_mapping
    with (
        model_errors(f"{checkpoint.name}: its weights cannot be read", config),
        no_larger_than(checkpoint.name, checkpoint.num_bytes, len(checkpoint.locations), config),
        quiet(),  # what it would report, we check and raise
        standing_in(),
        _without_adapter(checkpoint) as folder,
    ):
        model, info = classifier_class.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    allowed = set(may_miss)
    for key in info["mismatched_keys"]:
        name, found, expected = (*key, "", "")[:3] if isinstance(key, (tuple, list)) else (key, "?", "?")
        if name in allowed:  # another head comes in its place
            continue
        raise ModelError(
            f"{checkpoint.name}: {name} has shape {_shape(found)}, but the config (num_labels="
            f"{config.num_labels}) asks for {_shape(expected)}; correct the file, or the config with "
            f"hf_overrides={{'num_labels': …}} (--hf-overrides){hints(config, _shape(expected))}."
        )
    missing = set(info["missing_keys"])
    if headless:
        allowed |= {name for name in missing if not in_backbone(model.base_model_prefix, name)}
    _check_tensors(checkpoint, model, sorted(missing - allowed), sorted(info["unexpected_keys"]))
    refuse_nonfinite(model, checkpoint.name, skip=missing)
    if source.adapter is not None:
        merge_into(model, source.adapter, skip=allowed, beside=checkpoint.locations)
    _make_bidirectional(model)
    return model.eval(), missing & allowed


def _older_names(checkpoint: Checkpoint, classifier_class: type[PreTrainedModel]) -> dict[str, str]:
    """How transformers' class of a checkpoint reads the names of older layouts, where a class of ours stands in its place.

    Qwen2.5-VL's `visual` and `model` became `model.visual` and `model.language_model`, by a rule for its own class alone.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import PrefixChange, WeightRenaming

    if get_checkpoint_conversion_mapping(classifier_class.__name__) is not None:
        return {}
    rules = [each for name in checkpoint.class_names for each in get_checkpoint_conversion_mapping(name) or ()]
    return {
        pattern: target
        for rule in rules
        if isinstance(rule, WeightRenaming) and not isinstance(rule, PrefixChange)
        for pattern, target in zip(rule.source_patterns, rule.target_patterns, strict=True)
        if target.startswith(f"{classifier_class.base_model_prefix}.")
    }


@contextlib.contextmanager
def _without_adapter(checkpoint: Checkpoint) -> Iterator[Path]:
    """The folder for transformers, without an adapter, which it would load where PEFT is installed; we merge it."""
    if not checkpoint.has_adapter:
        yield checkpoint.folder
        return
    with tempfile.TemporaryDirectory() as view:
        for path in checkpoint.folder.resolve().iterdir():
            if not path.name.startswith("adapter_"):
                (Path(view) / path.name).symlink_to(path)
        yield Path(view)


def _check_tensors(checkpoint: Checkpoint, model: PreTrainedModel, missing: list[str], unexpected: list[str]) -> None:
    """Refuse missing tensors and unread tensors of the backbone; warn of dropped heads.

    Raises:
        ModelError: a parameter is missing, or a part of the model would be lost.
    """
    unexpected = [name for name in unexpected if checkpoint.holds(name)]
    if not missing and not unexpected:
        return
    reader = Reader(model)
    family = Family(reader.backbone, checkpoint.class_names, model.dtype)
    unused = Unused.sort(unexpected, reader, family)
    unused.refuse_missing(missing, checkpoint.name, reader)
    unused.refuse_loss(checkpoint.name, type(model).__name__)
    if unused.foreign:
        warnings.warn(f"{unused.warning(checkpoint.name)}.", stacklevel=2)


def _make_bidirectional(model: PreTrainedModel) -> None:
    """Make a decoder bidirectional whose config says `is_causal: false`.

    transformers then masks nothing, but SDPA without a mask reads the flag of the attention modules, which stays.
    """
    if getattr(model.config.get_text_config(), "is_causal", True) is False:
        for module in model.modules():
            if getattr(module, "is_causal", False) is True:
                module.is_causal = False


def refuse_nonfinite(model: PreTrainedModel, name: str, skip: Iterable[str] = ()) -> None:
    """Raise `ModelError` if a weight is NaN or infinite."""
    import torch

    from ...runtime.machine.device import local

    skipped = set(skip)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in skipped or not parameter.is_floating_point() or parameter.is_meta:  # that is elsewhere
            continue
        values = local(parameter)
        # A sum is one pass over the memory; it is not finite if any element is not.
        if not torch.isfinite(values.sum(dtype=torch.float32)) and not bool(torch.isfinite(values).all()):
            raise ModelError(
                f"{name}: the weight {parameter_name} holds NaN or infinite values; fetch or train it again."
            )


def _shape(value: Any) -> str:
    return value if isinstance(value, str) else str(tuple(value))
