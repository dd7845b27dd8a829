"""Which head a model gets when it is loaded: its own, or one made of the rows of its LM head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...architecture import OWN_MODEL_TYPE, HeadRequest, HeadResult, Target
from ...checkpoint.cross_encoder import CrossEncoderFiles, read_activation
from ...checkpoint.name_rules import foreign_heads, some
from ...config import ModelConfig
from ...decisions.settings import label_ids
from ...errors import ConfigError, ModelError
from ...head_source import EXISTING
from ...registry import registry
from .source import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from transformers.decision import DecisionConfig


def head_at_load(source: ModelSource, options: ModelConfig) -> HeadResult:
    """The head that a model gets while it is loaded; one for `convert="reward"` gives its logit as it is.

    Raises:
        ModelError: there is no head, and none was asked for.
        ConfigError: a reward was asked for, and the head has several labels.
    """
    result = _head_at_load(source, options)
    return as_reward(source, result) if options.convert == "reward" else result


def as_reward(source: ModelSource, result: HeadResult) -> HeadResult:
    """A head of one label as a regression, whose logit no activation changes.

    Raises:
        ConfigError: it has several labels, and does not judge steps.
    """
    if (source.settings.get("pooler_config") or {}).get("task") == "token_classify":
        return result
    count = len(result.labels) or source.config.num_labels
    if count != 1:
        raise ConfigError(f"a reward is one number, and this head has {count} labels; use convert='classify'.")
    return replace(result, problem_type="regression")


def _head_at_load(source: ModelSource, options: ModelConfig) -> HeadResult:
    """The head that a model gets while it is loaded: its own, or one made of its LM head's rows.

    Raises:
        ModelError: there is no head, and none was asked for.
    """
    if source.adapter is not None and source.settings.get("heads"):
        raise ConfigError(
            f"{options.model} has several heads with names, which take no adapter; merge it before they get them (`vcls convert "
            "MODEL OUT --lora ADAPTER`)."
        )
    if source.decisions is not None and answers_questions(source) and not source.is_decision_model:
        return _label_head(source, source.decisions)
    from_tokens = token_head(source)
    is_requested = options.convert in (source.task, "reward") or source.is_classifier
    if from_tokens and (is_requested or from_tokens.is_what_it_is):
        if source.adapter is not None:
            source.adapter.check_output_layer()
        labels = options.label_overrides()
        result = make_head(source, from_tokens.method, from_tokens.options)
        _check_count(result, options, "classifier_from_token makes")
        return replace(result, labels=labels or result.labels)
    if "classifier_from_token" in options.hf_overrides and not lacks_head(source):
        raise ConfigError(f"{options.model} has a head already; leave classifier_from_token out of hf_overrides.")
    # A checkpoint that says it is a classifier is held to it when its weights are read.
    is_requested = options.convert in (source.task, "reward") or source.adapter is not None
    if source.is_classifier or (is_requested and not lacks_head(source)):
        result = make_head(source, EXISTING, {"adapter": source.adapter}, problem_type=source.config.problem_type)
        _check_count(result, options, "the model has")
        return result
    refuse_nameless(source)
    raise ModelError(
        f"{headless_description(source)}, and a head is never invented. Make one with `vcls convert {options.model} OUT --convert "
        f"{source.task} --head {heads_for(source)} …`, or pass convert='{source.task}' with "
        "hf_overrides={'classifier_from_token': [...], 'method': ...}. A chat model answers typed questions with convert='decide'."
    )


def answers_questions(source: ModelSource) -> bool:
    """Whether a model is opened for decisions: it was asked for, or its class or the files beside it say so.

    Raises:
        ConfigError: it was asked for, and the model is a classifier or an encoder.
    """
    if source.decisions is None or source.is_decision_model:
        return source.decisions is not None
    classifies = source.is_classifier or source.is_other_classifier
    if classifies or source.pooling not in ("LAST", "ALL"):
        give = "the model that it was made from" if classifies else "a causal language model, best one for chats"
        raise ConfigError(
            f"decisions read a language model's output layer, and {source.checkpoint.name} is a {source.class_name}; give {give}."
        )
    return True


def _label_head(source: ModelSource, settings: DecisionConfig) -> HeadResult:
    """A head of the output layer's rows for all labels that a question can have."""
    if source.adapter is not None:
        source.adapter.check_output_layer()
    return make_head(source, "tokens", {"token_ids": label_ids(settings, source.tokenizer, source.checkpoint.name)})


def _check_count(result: HeadResult, options: ModelConfig, what: str) -> None:
    """Raise `ConfigError` if `hf_overrides` ask for another number of labels than a head has."""
    found = len(result.labels)
    requested = len(options.label_overrides()) or options.hf_overrides.get("num_labels", found)
    if found and requested != found:
        raise ConfigError(f"hf_overrides: {what} {found} labels, but num_labels or id2label name {requested}.")


def refuse_nameless(source: ModelSource) -> None:
    """Raise `ModelError` if there is a head and no class name in config.json: heads for texts and for tokens look alike."""
    if not source.class_name and not lacks_head(source):
        raise ModelError(
            f"{source.checkpoint.name}: config.json names no class (architectures), and the file has "
            f"{source.architecture.final_linear}.weight, a head for whole texts or for each token; say which with "
            "convert='classify' or 'token_classify' (--convert)."
        )


def headless_description(source: ModelSource) -> str:
    """A clause for errors: what the model is, and that it has no head for its task."""
    what = source.class_name or source.config.model_type
    if source.is_other_classifier:
        read = "whole texts" if source.task == "token_classify" else "each token"
        return f"{source.checkpoint.name} is a {what}, whose head classifies {read}; it has none for {source.task}"
    return f"{source.checkpoint.name} is a {what} without a classification head{_about_foreign_head(source)}"


def _about_foreign_head(source: ModelSource) -> str:
    """A clause for errors: which head of another library the checkpoint has, and how to convert it; empty without one."""
    names = foreign_heads(source.checkpoint.locations)
    bring = f"--head {'|'.join(registry().heads_taking('head_weights'))}"
    advice = f"if it is one linear layer, save its weight and bias as a safetensors file and bring it with {bring}"
    if {"score.0.weight", "score.2.weight"} <= set(names):
        advice = "if it is Qwen2.5-Math's, say so with hf_overrides={'architectures': ['Qwen2ForRewardModel']}"
    if (
        not source.class_name
        and source.task != "token_classify"
        and any(name.startswith("classifier.") for name in names)
    ):
        advice = f"if it labels each token, say so with convert='token_classify' (--convert); {advice}"
    if names:
        return f" of its own (it has {some(names)}, a head of another kind: {advice})"
    if source.pickled_head:
        return (
            f" of its own (SetFit's {source.pickled_head} is a pickled scikit-learn model: save its coef_ and intercept_ as "
            f"weight and bias in a safetensors file and bring it with {bring} --pooling mean)"
        )
    return ""


def heads_for(source: ModelSource) -> str:
    """The head sources that can make a head for a model, as "fit|tokens|…"."""
    return registry().heads_for(source.task)


@dataclass(frozen=True)
class TokenHead:
    """A head of LM rows that a checkpoint or `hf_overrides` asks for: the head source and its options.

    `is_what_it_is` says that the checkpoint is a CrossEncoder made so, and not only asked to be one.
    """

    method: str
    options: Mapping[str, Any]
    is_what_it_is: bool = False


def token_head(source: ModelSource) -> TokenHead | None:
    """The head that `classifier_from_token` (vLLM's name) or a CrossEncoder's `LogitScore` describes; None without either.

    Raises:
        ConfigError: `method` is unknown.
    """
    if not lacks_head(source):
        return None
    config = source.config
    original = getattr(config, "is_original_qwen3_reranker", False)
    strings = getattr(config, "classifier_from_token", None) or (["no", "yes"] if original else None)
    if strings:
        return TokenHead("two-way" if _is_two_way(config) else "tokens", {"token_strings": list(strings)})
    files = CrossEncoderFiles.from_checkpoint(source.checkpoint)
    if files is not None and files.tokens:
        return TokenHead("two-way" if len(files.tokens) == 2 else "tokens", {"token_ids": files.tokens}, True)
    return None


def _is_two_way(config: PreTrainedConfig) -> bool:
    method = getattr(config, "method", None)
    if getattr(config, "is_original_qwen3_reranker", False):
        method = method or "from_2_way_softmax"
    known = ("from_2_way_softmax", "no_post_processing", None)
    if method not in known:
        raise ConfigError(
            f"hf_overrides: method={method!r} is unknown; use 'from_2_way_softmax' or 'no_post_processing'."
        )
    return method == "from_2_way_softmax"


def lacks_head(source: ModelSource) -> bool:
    """Whether the checkpoint has no tensor of the last linear layer, or one that was made for another task."""
    if source.adapter is not None and source.adapter.head_rows(source.architecture.final_linear) is not None:
        return False
    if source.is_other_classifier:
        return True
    if source.config.model_type == OWN_MODEL_TYPE or not source.checkpoint.locations:
        return False  # pickled weights tell only when they are read
    return f"{source.architecture.final_linear}.weight" not in source.checkpoint.locations


def make_head(source: ModelSource, method: str, options: Mapping[str, Any], **known: Any) -> HeadResult:
    """Ask the head source `method` for a head: a `HeadResult`.

    Args:
        options: what the source needs (`label_tokens`, `train` …).
        known: fields of `HeadRequest` that the caller has (`labels`, `tokenize`, `states` …).

    Raises:
        ConfigError: no plugin has such a source.
    """
    return registry().make_head(method, head_request(source, options, **known))


def head_request(source: ModelSource, options: Mapping[str, Any], **known: Any) -> HeadRequest:
    """What a head source is given; arguments as for `make_head`."""

    def unavailable(*args: Any) -> Any:
        raise ConfigError("this head needs the model to run while it is made; make it with `vcls convert`.")

    return HeadRequest(
        checkpoint=source.checkpoint,
        config=source.config,
        architecture=source.architecture,
        tokenizer=source.tokenizer,
        labels=known.get("labels", ()),
        problem_type=known.get("problem_type"),
        pooling=known.get("pooling") or source.architecture.pooling(source.backbone_config),
        options=options,
        tokenize=known.get("tokenize", unavailable),
        states=known.get("states", unavailable),
    )


def target_for(source: ModelSource, result: HeadResult, pooling: str | None = None) -> Target:
    """The class and config that hold `result`'s head on this source's backbone."""
    target: Target = registry().call(
        "vcls_target",
        architecture=source.architecture,
        config=source.config,
        result=result,
        pooling=pooling or source.pooling,
    )
    files = CrossEncoderFiles.from_checkpoint(source.checkpoint)
    if files is not None and files.tokens and result.head.method in ("two-way", "tokens"):
        read_activation(source.checkpoint, target.config)  # this new head is the one that the folder speaks of
    return target
