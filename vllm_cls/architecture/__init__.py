"""`Architecture`, which plugins subclass, and the values that the core, the adapters and plugins exchange."""

from __future__ import annotations

from ..decisions.heads import DecisionHead, LabelHead, LogitsAtMark, ReadSpan
from .family import CLASSIFIERS, DECISIONS, OWN_MODEL_TYPE, REWARDS, Architecture, decoder_start
from .heads import Head, LinearHead, SequenceHead, rescaled_bias
from .requests import (
    CalibrationRequest,
    ConversionPlan,
    HeadRequest,
    HeadResult,
    NamedHeadRequest,
    ScoreTemplate,
    Target,
)

__all__ = [
    "CLASSIFIERS",
    "DECISIONS",
    "OWN_MODEL_TYPE",
    "REWARDS",
    "Architecture",
    "CalibrationRequest",
    "ConversionPlan",
    "DecisionHead",
    "Head",
    "HeadRequest",
    "HeadResult",
    "LabelHead",
    "LinearHead",
    "LogitsAtMark",
    "NamedHeadRequest",
    "ReadSpan",
    "ScoreTemplate",
    "SequenceHead",
    "Target",
    "decoder_start",
    "rescaled_bias",
]
