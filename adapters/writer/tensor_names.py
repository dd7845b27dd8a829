"""Which tensor of a checkpoint becomes which of a classifier class, decided without reading one.

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
class Place:
    """Where a tensor of the source goes.

    Args:
        name: to write it under.
        target: the parameter of the class that loading makes of it.
        fused: loading joins it with others, or splits it, to make parameters.
    """

    name: str
    target: str
    fused: bool


@dataclass(frozen=True)
class TensorNames:
    """What becomes of a checkpoint's tensors.

    Args:
        written: source name → name to write, for those that are kept.
        dropped: source names that the classifier has no use for.
        dtypes: source name → the type that the class holds it in; of the backbone only.
        parameters: source name → the class's parameter that it alone becomes.
        model: of the class, on the meta device.
        warning: what is to be said of those that are dropped; empty for nothing.
    """

    written: Mapping[str, str]
    dropped: list[str]
    dtypes: Mapping[str, torch.dtype]
    parameters: Mapping[str, str]
    model: PreTrainedModel
    warning: str = ""


@dataclass(frozen=True)
class LoadOptions:
    """How the result is to be opened.

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
    opening: LoadOptions, tensors: Mapping[str, torch.Tensor], head: Mapping[str, torch.Tensor]
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

    model_class = opening.model_class
    reader = Reader(load_on_meta(model_class, opening.config, {}, opening.dtype)[0])
    family = Family(reader.backbone, opening.source_classes, opening.dtype)
    unknown = sorted(set(head) - set(reader.parameters))
    if unknown:
        raise ModelError(f"{model_class.__name__} has no parameter {some(unknown)}; a head must name its own.")
    # In the order of loading, which some renamings depend on.
    places = {key: _place(key, reader, family, opening.moved) for key in sorted(tensors, key=dot_natural_key)}
    kept = {key: place for key, place in places.items() if place is not None and place.target not in head}
    _refuse_collisions(kept, opening.source)
    planned = {place.name: tensors[key] for key, place in kept.items()} | dict(head)
    unused = Unused.among([key for key, place in places.items() if place is None], reader, family)
    held = _try_out(opening, planned, reader, unused)
    unused.refuse_loss(opening.source, model_class.__name__)
    return TensorNames(
        written={key: place.name for key, place in kept.items()},
        dropped=[key for key in places if key not in kept],
        dtypes={
            key: held.get(place.target, opening.dtype)  # what is kept beside the class has no place in it
            for key, place in kept.items()
            if key in opening.moved or place.target.startswith(reader.inside)
        },
        parameters={key: place.target for key, place in kept.items() if not place.fused},
        model=reader.model,
        warning=unused.told(opening.source),
    )


def _place(key: str, reader: Reader, family: Family, moved: Mapping[str, str]) -> Place | None:
    """Where a tensor of the source goes, or None where the class has no use for it.

    The name on disk is kept where loading accepts it as it is. Else the backbone's prefix is added, or
    exchanged for that of the source: transformers would do so when it loads, other readers would not. What
    is left is read as the source's own class reads it, and named as the parameter that this makes.
    """
    if key in moved:
        return Place(moved[key], moved[key], False)
    stems = [key, *(key.removeprefix(f"{prefix}.") for prefix in (reader.backbone.base_model_prefix, "model"))]
    for name in (key, *(reader.inside + stem for stem in stems)):
        target, fused = reader.target(name)
        if target is not None:
            return Place(name, target, fused)
    for relative in family.of_source:
        inner = relative.inner_target(key)
        if inner is not None and reader.inside + inner in reader.parameters:
            return Place(reader.inside + inner, reader.inside + inner, False)
    return None


def _refuse_collisions(kept: Mapping[str, Place], source: str) -> None:
    targets = Counter(place.target for place in kept.values() if not place.fused)
    names = Counter(place.name for place in kept.values())
    twice = [key for key, place in kept.items() if targets[place.target] > 1 or names[place.name] > 1]
    if twice:
        raise ModelError(f"{source} holds the same parameter under several names: {some(twice)}; remove all but one.")


def _try_out(
    opening: LoadOptions, planned: Mapping[str, torch.Tensor], reader: Reader, unused: Unused
) -> dict[str, torch.dtype]:
    """Load what is planned, without memory; the type of each parameter that comes of it.

    Raises:
        ModelError: a parameter is missing or has another shape, or a tensor is not used.
    """
    model, info = load_on_meta(opening.model_class, opening.config, planned, opening.dtype)
    source, name = opening.source, opening.model_class.__name__
    wrong = [f"{key[0]} {tuple(key[1])} instead of {tuple(key[2])}" for key in sorted(info["mismatched_keys"])]
    if wrong:
        raise ModelError(f"{source}: shapes that {name} refuses: {some(wrong)}.")
    unused.refuse_missing(sorted(info["missing_keys"]), source, reader)
    unexpected = sorted(info["unexpected_keys"])
    if unexpected:
        raise ModelError(f"{source}: {name} would not load {some(unexpected)}.")
    return {key: tensor.dtype for key, tensor in model.state_dict().items()}
