"""The built-in head sources by their `--head` names, and the hooks for targets, calibration and model cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm_cls.architecture import (
    Architecture,
    CalibrationRequest,
    HeadRequest,
    HeadResult,
    NamedHeadRequest,
    Target,
)
from vllm_cls.head_source import EXISTING, HeadSource
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
    from .fitted_head import fitted_head

    return fitted_head(request)


@hookimpl
def vcls_head_sources() -> Mapping[str, HeadSource]:
    return _SOURCES


_BOTH = ("classify", "token_classify")
_SOURCES = {
    EXISTING: HeadSource(
        _existing,
        "the checkpoint, or the adapter of --lora (the default where there is one)",
        tasks=_BOTH,
        example="vcls convert ./finetuned copy --dtype bfloat16",
        card="The head is the one that the model already had.",
    ),
    "fit": HeadSource(
        _fit,
        "fitted on the frozen model's states of the rows of --train",
        takes=("bias",),
        needs=("train",),
        example="vcls convert ./bert my-classifier --head fit --train train.jsonl --label-field class\n"
        "vcls convert ./bert urgent --head fit --train urgent.jsonl --head-name urgent\n"
        "vcls convert urgent both --head fit --train topics.jsonl --head-name topic   # two heads, one forward",
        card="The head is a linear layer fitted on the frozen model's states of labelled texts.",
    ),
    "tokens": HeadSource(
        _tokens,
        "rows of the language model's own output layer, for --label-tokens",
        needs=("label_tokens",),
        tasks=_BOTH,
        reads_lm_head=True,
        example="vcls convert ./llama sentiment --head tokens --labels negative,positive \\\n"
        "    --label-tokens 'negative= bad| terrible,positive= good| great' \\\n"
        "    --prompt-template 'Review: {text}\\nSentiment:'\n"
        "vcls convert ./llama calibrated --head tokens --label-tokens 'no= bad,yes= good' --calibrate rows.jsonl",
        card="Each label's score is the language model's own logit for the label's token or tokens.",
    ),
    "two-way": HeadSource(
        _two_way,
        "one label: logit(yes) - logit(no), for --label-tokens 'no,yes'",
        needs=("label_tokens",),
        tasks=_BOTH,
        one_label=True,
        reads_lm_head=True,
        example="vcls convert ./reranker scorer --head two-way --label-tokens 'no,yes' \\\n"
        "    --score-template 'Query: {{ query }}\\nDocument: {{ document }}\\nRelevant:'",
        card="The score is the language model's logit of one token less that of another.",
    ),
    "sequence": HeadSource(
        _sequence,
        "labels of several tokens, by the log-probability of their whole text",
        needs=("label_tokens",),
        reads_lm_head=True,
        example="vcls convert ./llama sentiment --head sequence \\\n"
        "    --label-tokens 'negative= very bad,positive= quite good' --chat-template-prompt",
        card="Each label's score is the log-probability that the language model gives the label's text.",
    ),
    "file": HeadSource(
        _file,
        "a safetensors file, --head-weights",
        needs=("head_weights",),
        tasks=_BOTH,
        example="vcls convert ./bert my-classifier --head file --head-weights head.safetensors --labels no,yes",
        card="The head was read from a file.",
    ),
    "random": HeadSource(
        _random,
        "random numbers, for training",
        tasks=_BOTH,
        example="vcls convert ./bert untrained --head random --num-labels 3 --seed 1\n"
        "vcls convert ./bert tagger --convert token_classify --head random --labels O,B-PER,I-PER",
        card="**The head is random: its answers mean nothing until it is trained.**",
    ),
}


@hookimpl(trylast=True)
def vcls_calibrate(request: CalibrationRequest) -> HeadResult:
    from .calibration import calibrate

    return calibrate(request)


@hookimpl(trylast=True)
def vcls_target(architecture: Architecture, config: PreTrainedConfig, result: HeadResult, pooling: str) -> Target:
    from .target_class import target

    return target(architecture, config, result, pooling)


@hookimpl(trylast=True)
def vcls_named_head(request: NamedHeadRequest) -> Target:
    from .add_head import add_head

    return add_head(request)


@hookimpl(trylast=True)
def vcls_model_card(values: Mapping[str, Any]) -> str:
    from ..writer.model_card import model_card

    return model_card(**values)


@hookimpl
def vcls_auto_classes() -> list[tuple[type, type]]:
    from ..classifiers.own_type import VclsConfig, VclsForSequenceClassification, VclsForTokenClassification

    return [(VclsConfig, VclsForSequenceClassification), (VclsConfig, VclsForTokenClassification)]
