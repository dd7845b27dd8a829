"""Where heads come from, by the names that `--head` takes, and the class that can hold one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm_cls.architecture import (
    Architecture,
    CalibrationRequest,
    HeadRequest,
    HeadResult,
    HeadSource,
    NamedHeadRequest,
    Target,
)
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _existing(request: HeadRequest) -> HeadResult:
    from .stored_head import existing_head

    return existing_head(request)


def _file(request: HeadRequest) -> HeadResult:
    from .stored_head import head_from_file

    return head_from_file(request)


def _random(request: HeadRequest) -> HeadResult:
    from .random_head import random_head

    return random_head(request)


def _tokens(request: HeadRequest) -> HeadResult:
    from .label_tokens import token_head

    return token_head(request)


def _two_way(request: HeadRequest) -> HeadResult:
    from .label_tokens import two_way_head

    return two_way_head(request)


def _sequence(request: HeadRequest) -> HeadResult:
    from .sequence_head import sequence_head

    return sequence_head(request)


def _fit(request: HeadRequest) -> HeadResult:
    from .fit import fitted_head

    return fitted_head(request)


@hookimpl
def vcls_head_sources() -> Mapping[str, HeadSource]:
    return {
        "existing": _existing,
        "tokens": _tokens,
        "two-way": _two_way,
        "sequence": _sequence,
        "fit": _fit,
        "file": _file,
        "random": _random,
    }


@hookimpl
def vcls_calibrate(request: CalibrationRequest) -> HeadResult:
    from .calibration import calibrate

    return calibrate(request)


@hookimpl
def vcls_target(architecture: Architecture, config: PreTrainedConfig, result: HeadResult, pooling: str) -> Target:
    from .target import target

    return target(architecture, config, result, pooling)


@hookimpl
def vcls_named_head(request: NamedHeadRequest) -> Target:
    from .add_head import add_head

    return add_head(request)


@hookimpl
def vcls_model_card(values: Mapping[str, Any]) -> str:
    from .model_card import model_card

    return model_card(**values)


@hookimpl
def vcls_auto_classes() -> list[tuple[type, type]]:
    from .own_type import VclsConfig, VclsForSequenceClassification
    from .token_cls import VclsForTokenClassification

    return [(VclsConfig, VclsForSequenceClassification), (VclsConfig, VclsForTokenClassification)]
