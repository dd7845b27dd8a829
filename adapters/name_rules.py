"""How classes map the names of a checkpoint to their own, by transformers' rules, on models without memory."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import sys
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

from vllm_cls.transformers_logging import quiet

from .meta_loading import load_on_meta


class Reader:
    """How one class reads names on disk.

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
        """The parameter that loading makes of a name as it is, or None; and whether with others or in parts."""
        from transformers.core_model_loading import rename_source_key

        target, pattern = rename_source_key(name, self.renamings, self.converters)
        if target in self.parameters:
            return target, pattern is not None
        return (name if name in self.parameters else None), False  # as the loader does: it needed no renaming

    def inner_target(self, name: str) -> str | None:
        """The backbone's parameter, named from the backbone, that loading makes of this name alone; or None."""
        from transformers.core_model_loading import rename_source_key

        prefix = self.model.base_model_prefix
        target, pattern = rename_source_key(name, self.renamings, self.converters, prefix, self.parameters)
        if pattern is not None or target not in self.parameters or not target.startswith(self.inside):
            return None
        return target.removeprefix(self.inside)

    def part(self, name: str) -> str:
        """The part of the model that a name on disk belongs to, whether or not the model has it."""
        return (self.target(name)[0] or name).partition(".")[0]

    @functools.cached_property
    def parts(self) -> set[str]:
        """Names of the parts directly in the model."""
        return {name.partition(".")[0] for name in self.parameters}


class Family:
    """The classes that share a backbone's config and its modeling file: what they call a head is one.

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
        here = vars(sys.modules[type(self.backbone).__module__]).values()
        classes = [one for one in [*named, *here] if isinstance(one, type)]
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
