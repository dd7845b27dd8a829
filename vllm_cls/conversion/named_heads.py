"""A checkpoint with named heads: the model without them, and the settings that they share."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..architecture import CLASSIFIERS
from ..checkpoint.files import Checkpoint
from ..errors import ConfigError
from ..model.loading.source import ModelSource

if TYPE_CHECKING:
    import torch

_INSIDE = "model."  # the backbone's prefix in a checkpoint of our own type
SHARED = ("pooling", "prompt_template", "chat_template_prompt", "max_model_len", "score_template", "query_prefix")
"""Settings under `vcls` that all heads have in common, since a text runs once."""


def head_names(source: ModelSource) -> list[str]:
    """The names of a checkpoint's heads; empty where there is a single head without a name, or none."""
    return [each["name"] for each in source.settings.get("heads") or ()]


@dataclass(frozen=True)
class WithoutHeads(Checkpoint):
    """A checkpoint of our own type as the backbone and the LM head that it was made from: their tensors, by their names.

    Args:
        lm_head: the names of the LM head's tensors, here → in the model that they come from.
        inner: pattern of names, of layers trained with the head that the model had, which further heads may read.
    """

    lm_head: Mapping[str, str] = field(default_factory=dict)
    inner: str | None = None

    @functools.cached_property
    def _stored(self) -> dict[str, str]:
        """Name → the name on disk."""
        names = Checkpoint(self.folder, None, self.name).locations
        inside = {name.removeprefix(_INSIDE): name for name in names if name.startswith(_INSIDE)}
        trained = {re.sub(self.inner, "", name): name for name in names if self.inner and re.match(self.inner, name)}
        return inside | trained | {old: new for new, old in self.lm_head.items() if new in names}

    @functools.cached_property
    def locations(self) -> dict[str, Path]:
        places = Checkpoint(self.folder, None, self.name).locations
        return {name: places[stored] for name, stored in self._stored.items()}

    def tensor(self, name: str, rows: Any = None) -> torch.Tensor:
        stored = self._stored.get(name, name)
        return Checkpoint(self.folder, None, self.name).tensor(stored, rows)

    def same(self, name: str, other: str) -> bool:
        stored, stored_other = (self._stored.get(each, each) for each in (name, other))
        return Checkpoint(self.folder, None, self.name).same(stored, stored_other)

    def holds(self, name: str) -> bool:
        return name.partition(".")[0] not in ("heads", "lm_head")

    def key_mapping(self, prefix: str) -> dict[str, str] | None:
        found = {} if f"{prefix}." == _INSIDE else {rf"^{re.escape(_INSIDE)}": f"{prefix}." if prefix else ""}
        return {**({self.inner: ""} if self.inner else {}), **found} or None


def without_heads(source: ModelSource) -> ModelSource:
    """The model that further heads are made from: the backbone of `source` and, where it is kept, its LM head."""
    config = copy.deepcopy(source.backbone_config)
    if any(name.endswith(tuple(CLASSIFIERS.values())) for name in config.architectures or ()):
        config.architectures = None
    config.num_labels, config.problem_type = 2, None
    config.vcls = {name: value for name, value in source.settings.items() if name in SHARED}
    lm_head = source.settings.get("lm_head") or {}
    first = source.settings["heads"][0]
    trained = first["own"] and first["method"] == "existing"
    inner = rf"^heads\.0\.(?!{re.escape(source.architecture.final_linear)}\.|backbone_pooler\.)" if trained else None
    checkpoint = WithoutHeads(source.checkpoint.folder, None, source.checkpoint.name, lm_head=lm_head, inner=inner)
    return replace(source, checkpoint=checkpoint, config=config)


def shared_settings(source: ModelSource, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a head's settings say of the prompts of all heads.

    Args:
        source: the model that gets the head.
        settings: of the head alone.

    Raises:
        ConfigError: the heads that are there already are for other prompts, or another pooling.
    """
    found = {name: settings[name] for name in SHARED if settings.get(name) is not None}
    if head_names(source):
        for name in SHARED:
            stored = source.settings.get(name)
            if name in found and found[name] != stored:
                raise ConfigError(
                    f"--head-name: the heads of one model share each text's forward, and so its {name.replace('_', ' ')}: "
                    f"{source.checkpoint.name} has {stored!r}, not {found[name]!r}; make this head in a folder of its own."
                )
    return found
