"""Maps the tensor names of a checkpoint to those of a classifier class; no tensor is read.

Nothing is guessed: a name is kept where the class's own loading accepts it, and what is planned is then
loaded for a trial, on the meta device, where tensors have shapes and no memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm_cls.checkpoint.name_rules import Family, Reader, Unused, some
from vllm_cls.compat.meta_loading import load_on_meta
from vllm_cls.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Destination:
    """The destination of one source tensor.

    Args:
        name: the name in the written file.
        target: the parameter that it is loaded into.
        fused: loading merges it with other tensors, or splits it.
    """

    name: str
    target: str
    fused: bool


@dataclass(frozen=True)
class TensorNames:
    """The mapping of a checkpoint's tensor names.

    Args:
        written: source name → name to write, for those that are kept.
        dropped: source names that the classifier has no use for.
        dtypes: source name → the type that the class holds it in; of the backbone only.
        parameters: source name → the class's parameter that it alone becomes.
        model: of the class, on the meta device.
        warning: a message on dropped tensors; empty for none.
    """

    written: Mapping[str, str]
    dropped: list[str]
    dtypes: Mapping[str, torch.dtype]
    parameters: Mapping[str, str]
    model: PreTrainedModel
    warning: str = ""


@dataclass(frozen=True)
class LoadOptions:
    """How the written checkpoint will be loaded.

    Args:
        dtype: of the model.
        source: what the user calls the source, for errors.
        source_classes: names of the classes that the source was saved from.
        moved: tensors of the source that become parts of the head, by their names there → in the class.
    """

    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    dtype: torch.dtype
    source: str = "the model"
    source_classes: Collection[str] = ()
    moved: Mapping[str, str] = field(default_factory=dict)


def plan_names(
    options: LoadOptions, tensors: Mapping[str, torch.Tensor], head: Mapping[str, torch.Tensor]
) -> TensorNames:
    """Decide the names of a converted checkpoint.

    Args:
        tensors: the source's, on the meta device.
        head: parameters that are added or replaced, by their names in the class.

    Raises:
        ModelError: the class would miss a tensor or refuse a shape, or a tensor of the source that is not
            part of a head would be lost.
    """
    from transformers.core_model_loading import dot_natural_key

    model_class = options.model_class
    reader = Reader(load_on_meta(model_class, options.config, {}, options.dtype)[0])
    family = Family(reader.backbone, options.source_classes, options.dtype)
    unknown = sorted(set(head) - set(reader.parameters))
    if unknown:
        raise ModelError(f"{model_class.__name__} has no parameter {some(unknown)}; a head must name its own.")
    # In the order of loading, which some renamings depend on.
    destinations = {
        key: _destination(key, reader, family, options.moved) for key in sorted(tensors, key=dot_natural_key)
    }
    kept = {
        key: destination
        for key, destination in destinations.items()
        if destination is not None and destination.target not in head
    }
    _refuse_collisions(kept, options.source)
    planned = {destination.name: tensors[key] for key, destination in kept.items()} | dict(head)
    unused = Unused.sort([key for key, destination in destinations.items() if destination is None], reader, family)
    held = _load_on_trial(options, planned, reader, unused)
    unused.refuse_loss(options.source, model_class.__name__)
    return TensorNames(
        written={key: destination.name for key, destination in kept.items()},
        dropped=[key for key in destinations if key not in kept],
        dtypes={
            key: held.get(destination.target, options.dtype)  # tensors kept beside the class are none of its parameters
            for key, destination in kept.items()
            if key in options.moved or destination.target.startswith(reader.inside)
        },
        parameters={key: destination.target for key, destination in kept.items() if not destination.fused},
        model=reader.model,
        warning=unused.warning(options.source),
    )


def _destination(key: str, reader: Reader, family: Family, moved: Mapping[str, str]) -> Destination | None:
    """The destination of a source tensor, or None where the class does not read it.

    The name on disk is kept where loading accepts it as it is. Else the backbone's prefix is added, or
    exchanged for that of the source: transformers would do so when it loads, other readers would not. What
    is left is read as the source's own class reads it, and named as the parameter that this makes.
    """
    if key in moved:
        return Destination(moved[key], moved[key], False)
    stems = [key, *(key.removeprefix(f"{prefix}.") for prefix in (reader.backbone.base_model_prefix, "model"))]
    for name in (key, *(reader.inside + stem for stem in stems)):
        target, fused = reader.target(name)
        if target is not None:
            return Destination(name, target, fused)
    for relative in family.of_source:
        inner = relative.inner_target(key)
        if inner is not None and reader.inside + inner in reader.parameters:
            return Destination(reader.inside + inner, reader.inside + inner, False)
        renamed = relative.renamed(key)  # one of several that are merged, each under its own name
        target, fused = reader.target(renamed)
        if target is not None:
            return Destination(renamed, target, fused)
    return None


def _refuse_collisions(kept: Mapping[str, Destination], source: str) -> None:
    targets = Counter(destination.target for destination in kept.values() if not destination.fused)
    names = Counter(destination.name for destination in kept.values())
    twice = [key for key, destination in kept.items() if targets[destination.target] > 1 or names[destination.name] > 1]
    if twice:
        raise ModelError(f"{source} holds the same parameter under several names: {some(twice)}; remove all but one.")


def _load_on_trial(
    options: LoadOptions, planned: Mapping[str, torch.Tensor], reader: Reader, unused: Unused
) -> dict[str, torch.dtype]:
    """Load the planned tensors on the meta device; the dtype of each parameter.

    Raises:
        ModelError: a parameter is missing or has another shape, or a tensor is not used.
    """
    model, info = load_on_meta(options.model_class, options.config, planned, options.dtype)
    source, name = options.source, options.model_class.__name__
    wrong = [f"{key[0]} {tuple(key[1])} instead of {tuple(key[2])}" for key in sorted(info["mismatched_keys"])]
    if wrong:
        raise ModelError(f"{source}: shapes that {name} refuses: {some(wrong)}.")
    unused.refuse_missing(sorted(info["missing_keys"]), source, reader)
    unexpected = sorted(info["unexpected_keys"])
    if unexpected:
        raise ModelError(f"{source}: {name} would not load {some(unexpected)}.")
    return {key: tensor.dtype for key, tensor in model.state_dict().items()}
