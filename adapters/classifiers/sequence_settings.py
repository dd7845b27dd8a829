"""A head of label texts in a config, under the key `vcls`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vllm_cls.architecture import SequenceHead


def sequence_settings(head: SequenceHead) -> dict[str, Any]:
    """The head as a config holds it; the names of its tensors are those of our own class."""
    own = {"weight": head.weight and "lm_head.weight", "bias": head.bias and "lm_head.bias"}
    texts = [[list(ids) for ids in label] for label in head.texts]
    return {**asdict(head), **own, "texts": texts, "offset": list(head.offset)}


def sequences_from(settings: Mapping[str, Any]) -> SequenceHead | None:
    """The head of label texts in a config's settings, or None."""
    stored = settings.get("sequences")
    if not stored:
        return None
    texts = tuple(tuple(tuple(ids) for ids in label) for label in stored["texts"])
    return SequenceHead(**{**stored, "texts": texts, "offset": tuple(stored["offset"])})
