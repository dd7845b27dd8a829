"""How transformers' loading maps tensor names to a class's parameters, and which tensors a class does not read."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..compat.meta_loading import load_on_meta
from ..compat.transformers_calls import on_meta
from ..compat.transformers_logging import quiet
from ..errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Buffers that earlier versions of transformers saved, and that are computed since.
_OLD_BUFFERS = (
    r"(^|\.)(position|token_type)_ids$", r"rotary_emb\.inv_freq$", r"\.(attn|attention)\.(masked_)?bias$",
)  # fmt: skip
# Our own heads: a new head may lack parts that an older one of the same checkpoint had.
_OWN_PARTS = ("score.", "combine.", "heads.")
_OWN_HEADS = frozenset(f"{part}.{kind}" for part in ("score", "combine") for kind in ("weight", "bias"))
# What classes of other libraries call their heads.
_FOREIGN_HEADS = frozenset(
    "score classifier classification_head v_head value_head reward_head regression_head lm_head".split()
)


def in_backbone(prefix: str, name: str) -> bool:
    """Whether a classifier's parameter belongs to its backbone; the pooler there, which few checkpoints have, is head.

    Args:
        prefix: the class's `base_model_prefix`.
    """
    return name.startswith(f"{prefix}.") and not name.startswith(f"{prefix}.pooler.")


class Reader:
    """The mapping from tensor names on disk to the parameters of one class.

    Args:
        model: of that class, on the meta device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self.model = model
        self.parameters = model.state_dict()
        self.backbone: PreTrainedModel = model.base_model
        self.inside = "" if self.backbone is model else f"{model.base_model_prefix}."
        transforms = get_model_conversion_mapping(model)
        self.renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        self.converters = [one for one in transforms if isinstance(one, WeightConverter)]

    def target(self, name: str) -> tuple[str | None, bool]:
        """The parameter that a name on disk is loaded into, or None; and whether it is merged or split."""
        from transformers.core_model_loading import rename_source_key

        target, pattern = rename_source_key(name, self.renamings, self.converters)
        if target in self.parameters:
            return target, pattern is not None
        return (name if name in self.parameters else None), False  # as the loader does: it needed no renaming

    def inner_target(self, name: str) -> str | None:
        """The backbone's parameter, named from the backbone, that loading makes of this name alone; or None."""
        from transformers.core_model_loading import rename_source_key

        prefix = self.model.base_model_prefix
        target: str
        target, pattern = rename_source_key(name, self.renamings, self.converters, prefix, self.parameters)
        if pattern is not None or target not in self.parameters or not target.startswith(self.inside):
            return None
        return target.removeprefix(self.inside)

    def renamed(self, name: str) -> str:
        """A name on disk as the class reads it, before tensors are merged or split."""
        from transformers.core_model_loading import rename_source_key

        target: str = rename_source_key(name, self.renamings, [])[0]
        return target

    def part(self, name: str) -> str:
        """The part of the model that a name on disk belongs to, whether or not the model has it."""
        return (self.target(name)[0] or name).partition(".")[0]

    @functools.cached_property
    def parts(self) -> set[str]:
        """Names of the parts directly in the model."""
        return {name.partition(".")[0] for name in self.parameters}


class Family:
    """The classes that share a backbone's config and its modeling file; they define what is a head.

    Args:
        backbone: on the meta device.
        first: names of classes to look at first; those of the source.
    """

    def __init__(self, backbone: PreTrainedModel, first: Collection[str], dtype: torch.dtype) -> None:
        self.backbone, self.first, self.dtype = backbone, first, dtype
        self._made: list[Reader] = []
        self._unmade = self._make()

    @property
    def readers(self) -> Iterator[Reader]:
        """The backbone's own rules, then those of each class of the family; each is made once, when it is asked for."""
        yield from self._made
        for reader in self._unmade:
            self._made.append(reader)
            yield reader

    @functools.cached_property
    def of_source(self) -> list[Reader]:
        """The rules by which the source may have been written: its own classes', or where those are unknown, all."""
        known = [reader for reader in itertools.islice(self.readers, 1 + len(self.first)) if self._named(reader)]
        return [self._made[0], *known] if known else list(self.readers)

    def is_head(self, name: str) -> bool:
        """Whether a class of the family has a name on disk, or the part that it is in, beside the backbone."""
        own = {*next(self.readers).parts, self.backbone.base_model_prefix}
        if any(reader.inside and reader.part(name) in reader.parts - own for reader in self.readers):
            return True
        # Some classes hold the backbone's parts themselves; theirs that no base model has are heads.
        return any(reader.part(name) in reader.parts - self._bodies for reader in self.readers if not reader.inside)

    def has(self, name: str) -> bool:
        """Whether a class of the family reads a name on disk."""
        return any(reader.target(name)[0] is not None for reader in self.readers)

    @functools.cached_property
    def _bodies(self) -> set[str]:
        bases = [one for one in self.readers if not one.inside and one.model.get_output_embeddings() is None]
        return {self.backbone.base_model_prefix, *(part for base in bases for part in base.parts)}

    def _named(self, reader: Reader) -> bool:
        return type(reader.model).__name__ in self.first

    @functools.cached_property
    def pooler(self) -> set[str]:
        """Parameters of the backbone's class that this backbone is built without."""
        backbone_class = type(self.backbone)
        if "add_pooling_layer" not in inspect.signature(backbone_class.__init__).parameters:
            return set()
        whole, _ = load_on_meta(backbone_class, self.backbone.config, {}, self.dtype)
        return set(whole.state_dict()) - set(self.backbone.state_dict())

    def _make(self) -> Iterator[Reader]:
        import torch
        import transformers

        yield Reader(self.backbone)
        config = self.backbone.config
        named = [getattr(transformers, name, None) for name in self.first]
        members = vars(sys.modules[type(self.backbone).__module__]).values()
        classes = [one for one in [*named, *members] if isinstance(one, type)]
        for member in dict.fromkeys(one for one in classes if issubclass(one, transformers.PreTrainedModel)):
            # A model may say that it was saved from a class of another family, whose code it shares.
            if member not in named and not isinstance(config, getattr(member, "config_class", None) or ()):
                continue
            try:
                with quiet(), torch.device("meta"):
                    model = member(copy.deepcopy(config))
            except (ValueError, TypeError, AttributeError, NotImplementedError):
                continue  # a class that cannot be made from this config explains no tensor
            yield Reader(model)


@dataclass(frozen=True)
class Unused:
    """Tensors of a checkpoint that a class does not read, other than buffers that newer versions compute.

    Args:
        lost: of the backbone, or of nothing that is known, so that a part of the model would be lost.
        foreign: of a head that no class of this family has.
        heads: of another head that one has, a language model's as a rule.
    """

    lost: list[str]
    foreign: list[str]
    heads: list[str]

    @classmethod
    def sort(cls, names: Iterable[str], reader: Reader, family: Family) -> Unused:
        """Sort unread tensors into these groups.

        Args:
            names: of all tensors that the class has no place for.
            reader: of the class.
            family: of its backbone.
        """
        ignored = [*(reader.model._keys_to_ignore_on_load_unexpected or ()), *_OLD_BUFFERS]
        prefixes = (f"{reader.backbone.base_model_prefix}.", reader.inside)
        beside = reader.parts - {reader.model.base_model_prefix} if reader.inside else set()
        inside = {reader.backbone.base_model_prefix, *map(_part, reader.backbone.state_dict())}
        foreign = _FOREIGN_HEADS - inside
        found = cls([], [], [])
        for name in names:
            if any(re.search(pattern, name) for pattern in ignored):
                continue
            if any(name.removeprefix(prefix) in family.pooler for prefix in prefixes):
                continue
            if _part(name) in foreign and name not in _OWN_HEADS and not family.has(name):
                found.foreign.append(name)
            elif name in _OWN_HEADS or _part(name) in beside or family.is_head(name):
                found.heads.append(name)
            else:
                found.lost.append(name)
        return found

    def refuse_loss(self, source: str, class_name: str) -> None:
        """Raise `ModelError` if a part of the model would be lost."""
        if self.lost:
            raise ModelError(
                f"{source}: {class_name} has no place for {some(self.lost)}; leaving it out would lose a part of the model. Its "
                "config.json may not describe these weights (model_type, number of layers); correct it, or take out of the "
                "file what does not belong to the model."
            )

    def refuse_missing(self, missing: Sequence[str], source: str, reader: Reader) -> None:
        """Raise `ModelError` if the class of a reader lacks parameters; what is there instead is named."""
        if not missing:
            return
        unread = [*self.foreign, *self.lost, *(name for name in self.heads if name in _OWN_HEADS)]
        misnamed = next((name for name in unread if name.endswith(f".{missing[0]}")), None)
        advice = "" if not unread else f"The file has {some(unread)}, which that class does not read"
        if misnamed is not None:
            advice = f"The file has {misnamed}: take {misnamed.removesuffix(missing[0])!r} off its names."
        elif any(in_backbone(reader.model.base_model_prefix, name) for name in missing):
            advice = (
                f"The file is not whole, or config.json does not describe it. {advice}{'.' if advice else ''}".rstrip()
            )
        else:
            advice += (
                ": if that is its head, rename it, or bring it with --head-weights. Else make" if advice else "Make"
            )
            advice += " a head with `vcls convert … --head NAME`; its --help tells of each."
        raise ModelError(
            f"{source} lacks {some(missing)}, which {type(reader.model).__name__} needs; they are never invented. {advice}"
        )

    def warning(self, source: str) -> str:
        """A message on dropped heads, except those that one expects to be dropped; empty where there are none."""
        if not self.foreign:
            return ""
        return f"{source} has {some(self.foreign)}, a head of another kind, which is left out"


def refuse_unread_heads(names: Iterable[str], model_class: type[PreTrainedModel], config: Any, source: str) -> None:
    """Raise `ModelError` if a checkpoint of our own model type has more of heads than its config says.

    Args:
        names: of the tensors on disk.
        model_class: that the checkpoint was saved from; it takes a `backbone`.
        source: what the user calls it.
    """
    from torch import nn

    read = on_meta(model_class, config, backbone=nn.Identity()).state_dict()  # its heads alone are asked about
    unread = sorted(name for name in names if name.startswith(_OWN_PARTS) and name not in read)
    if unread:
        raise ModelError(
            f"{source}: its config.json says of no head that it has {some(unread)}; leaving it out would change a head, or lose "
            "one. Correct the config, or take out of the file what does not belong to the model."
        )


def foreign_heads(names: Iterable[str]) -> list[str]:
    """The names that other libraries use for heads; a language model's output layer is not one."""
    return sorted(name for name in names if _part(name) in _FOREIGN_HEADS - {"lm_head"} and name not in _OWN_HEADS)


def _part(name: str) -> str:
    return name.partition(".")[0]


def some(names: Collection[str]) -> str:
    """The first five of several names, and how many more there are."""
    shown = ", ".join(list(names)[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
