"""A classifier class of which this process holds some layers: those of the others are neither built nor read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from ...runtime.layers.absent import AbsentEmbedding, AbsentLayer, share

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from ...architecture import Architecture


def stage_class(
    whole: type[PreTrainedModel], architecture: Architecture, rank: int, size: int
) -> type[PreTrainedModel]:
    """A class like another, with the layers of one rank; the first alone has the embeddings.

    Raises:
        ModelError: when a model is built, there are fewer layers than ranks.
    """

    def build(self: Any, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, config, *args, **kwargs)
        layers = list(architecture.layers(architecture.backbone(self)))
        if len(layers) < size:
            raise ModelError(f"pipeline_parallel_size={size} is more than the model's {len(layers)} layers.")
        own = share(len(layers), rank, size)
        absent: dict[Any, Any] = {each: AbsentLayer(each) for place, each in enumerate(layers) if place not in own}
        if rank:
            embedding = self.get_input_embeddings()
            absent[embedding] = AbsentEmbedding(embedding)
        names = {each: name for name, each in self.named_modules()}
        for each, instead in absent.items():
            self.set_submodule(names[each], instead)
        held_elsewhere = {rf"^{re.escape(names[each])}\." for each in absent}
        self._keys_to_ignore_on_load_unexpected = {*(self._keys_to_ignore_on_load_unexpected or ()), *held_elsewhere}

    made: type[PreTrainedModel] = type(whole.__name__, (whole,), {"__init__": build, "__module__": whole.__module__})
    return made
