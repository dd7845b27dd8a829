"""The config of a checkpoint as transformers builds it, with the overrides that were asked for."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...architecture import CLASSIFIERS, OWN_MODEL_TYPE
from ...checkpoint.files import Checkpoint
from ...compat.transformers_calls import model_errors, reason
from ...config import OWN_CODE, ModelConfig, has_own_code
from ...errors import ConfigError, ModelError, nearest
from ...registry import registry

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Fields that no config of transformers has, and that are read here or by vLLM.
_READ_HERE = (
    "classifier_from_token", "method", "is_original_qwen3_reranker", "use_sep_token", "use_pad_token", "head_dtype",
    "sentence_transformers", "sbert_ce_default_activation_function", "is_causal", "vcls", "pooling", "classifier_pooling",
)  # fmt: skip
_OF_THE_BACKBONE = ("is_causal", "classifier_pooling", "use_bidirectional_attention")
_OF_A_HEAD = ("num_labels", "id2label", "label2id", "problem_type", "sentence_transformers")


def read_config(checkpoint: Checkpoint, options: ModelConfig) -> PreTrainedConfig:
    """The config of a checkpoint, of its own code where that is trusted.

    Raises:
        ModelError: it cannot be read, or is of a model type that nobody knows.
        ConfigError: an override that means nothing for it.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    content = checkpoint.json("config.json", replaced=_replaced(options))
    raw = {name: value for name, value in content.items() if value is not None}
    model_type = raw.get("model_type")
    ours = registry().collect("vcls_config_classes")
    if model_type in ours and model_type not in CONFIG_MAPPING:
        AutoConfig.register(model_type, ours[model_type]())
    known = model_type in CONFIG_MAPPING
    named = options.hf_overrides.get("architectures") or raw.get("architectures") or []
    auto_map = raw.get("auto_map") or {}
    # Where its class is transformers' own, or a plugin's, that one runs, unless its own code has a class of that name and
    # is trusted: so transformers does.
    has_own_class = _defines(auto_map, named)
    has_known_class = known and (not named or any(map(_is_known_class, named)))
    own_code = bool(auto_map) and ((options.trust_remote_code and has_own_class) or not has_known_class)
    if own_code and not options.trust_remote_code:
        advice = f", or hf_overrides={{'architectures': …}} with a class of transformers' {model_type}" if known else ""
        raise ModelError(
            f"{checkpoint.name} needs code of its own ({', '.join(map(str, [*named, *raw['auto_map'].values()][:3]))}); read it, "
            f"and if you trust it pass --trust-remote-code (trust_remote_code=True){advice}."
        )
    if auto_map and not own_code and (has_own_class or options.trust_remote_code):
        trust = "" if options.trust_remote_code else "; to run its own, read it and pass --trust-remote-code"
        warnings.warn(
            f"{checkpoint.name} brings code of its own, which is not run: transformers or a plugin has its class "
            f"({', '.join(named) or model_type}){trust}.",
            stacklevel=2,
        )
    if not known and not auto_map:
        raise ModelError(
            f"{checkpoint.name} has model_type {model_type!r}, which neither transformers nor an installed plugin knows; "
            f"write a plugin that registers its config and an Architecture with model_types = ({model_type!r},), and see "
            "`vcls plugins list`."
        )
    values = _with_overrides(checkpoint, raw, options)
    with model_errors(
        f"{checkpoint.name}: transformers cannot read its config.json",
        raw,
        advice="Another value can take the place of a wrong one with hf_overrides={…} (--hf-overrides).",
    ):
        config = _built(checkpoint, values, raw, own_code)
    config.return_dict = True  # what models give is read by name
    if own_code:
        _register_remote_classes(checkpoint, auto_map, config)
    return config


def _replaced(options: ModelConfig) -> set[str]:
    """The fields of config.json that `hf_overrides` take the place of, under any of their names."""
    found = set(options.hf_overrides)
    if found & {"num_labels", "id2label", "label2id"}:
        found |= {"num_labels", "id2label", "label2id"}
    if "dtype" in found:
        found.add("torch_dtype")  # its older name
    return found


def _defines(auto_map: Mapping[str, Any], named: Sequence[str]) -> bool:
    """Whether the checkpoint's own code has the class in `architectures`, or any model class where there is none."""
    models = {str(each).rpartition(".")[2] for auto, each in auto_map.items() if auto.startswith("AutoModel")}
    return bool(models) and (not named or not models.isdisjoint(named))


def _with_overrides(checkpoint: Checkpoint, raw: Mapping[str, Any], options: ModelConfig) -> Mapping[str, Any]:
    """config.json with `hf_overrides` applied, before transformers can refuse a value.

    What it does not say is left to `apply_overrides`.

    Raises:
        ModelError: it has one label and a problem type that needs two.
    """
    from transformers import CONFIG_MAPPING

    found, inner = dict(raw), raw.get("backbone_config") if raw.get("model_type") == OWN_MODEL_TYPE else None
    labels, values = options.label_overrides(), dict(options.hf_overrides)
    count = len(labels) or values.get("num_labels")
    if labels or count not in (None, _num_labels(raw)):
        found = {name: value for name, value in found.items() if name not in ("id2label", "label2id")}
        found["num_labels"] = count
        if labels:
            found |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    parts = (
        getattr(CONFIG_MAPPING[raw["model_type"]], "sub_configs", {}) if raw.get("model_type") in CONFIG_MAPPING else {}
    )
    for name, value in values.items():
        if name in ("num_labels", "id2label", "label2id"):
            continue
        if name == "dtype" and "torch_dtype" in found:  # its older name
            found[name] = found.pop("torch_dtype")
        whole = name in parts and isinstance(found.get(name), Mapping) and isinstance(value, Mapping)
        if isinstance(inner, Mapping) and name in inner and (name in _OF_THE_BACKBONE or name not in found):
            found["backbone_config"] = {**found["backbone_config"], name: value}
        elif name in found:
            found[name] = {**found[name], **value} if whole else value
    if found.get("problem_type") == "single_label_classification" and _num_labels(found) == 1:
        raise ModelError(
            f"{checkpoint.name}: config.json has one label, and problem_type 'single_label_classification', which needs two. "
            "Say what the number is with hf_overrides={'problem_type': …} (--hf-overrides): 'regression' gives it as it is, "
            "'multi_label_classification' its sigmoid."
        )
    return found


def _num_labels(raw: Mapping[str, Any]) -> int | None:
    """How many labels config.json has, as transformers reads it; None where it does not say."""
    named, count = raw.get("id2label"), raw.get("num_labels")
    return count if count is not None else len(named) if isinstance(named, (Mapping, list)) else None


def _built(
    checkpoint: Checkpoint, values: Mapping[str, Any], raw: Mapping[str, Any], own_code: bool
) -> PreTrainedConfig:
    """transformers' config of these values, which stand in config.json unless an override replaced one.

    What it refuses of the overrides is left to `apply_overrides`, which says so.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    config: PreTrainedConfig
    if values != raw and not own_code and "configuration_files" not in raw:  # which lie beside config.json
        refused = (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError)  # or no value of JSON
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(*refused):
            Path(folder, "config.json").write_text(json.dumps(values), encoding="utf-8")
            config = AutoConfig.from_pretrained(folder)
            config._name_or_path = str(checkpoint.folder)
            return config
    config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=own_code)
    return config


def _is_known_class(name: str) -> bool:
    """Whether transformers, in any spelling, or a plugin has a class of this name."""
    return name.lower() in _names_of_transformers() or any(
        name in each.class_names for _, each in registry().architectures()
    )


@functools.cache
def _names_of_transformers() -> frozenset[str]:
    import transformers

    return frozenset(map(str.lower, {*vars(transformers), *transformers.__all__}))  # as `dir`, which takes 0.2 s


def _register_remote_classes(checkpoint: Checkpoint, auto_map: Mapping[str, str], config: PreTrainedConfig) -> None:
    """Make a trusted checkpoint's own classes known to transformers' Auto classes.

    A config of transformers' own class gets one of its own, or other checkpoints of that class would run this code.
    """
    import torch
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    if not has_own_code(config):
        own = type(config)
        config.__class__ = type(own.__name__, (own,), {"__module__": f"{OWN_CODE}.{own.__module__}"})
    for auto_name in ("AutoModel", "AutoModelForCausalLM", *(f"AutoModel{ending}" for ending in CLASSIFIERS.values())):
        if auto_map.get(auto_name) is not None:
            with model_errors(f"{checkpoint.name}: {auto_name} of its auto_map cannot be loaded"):
                found = get_class_from_dynamic_module(auto_map[auto_name], str(checkpoint.folder))
            getattr(transformers, auto_name)._model_mapping.register(type(config), found, exist_ok=True)
    if "AutoModel" not in auto_map and "AutoModelForCausalLM" in auto_map:  # whose own backbone it is, then
        with torch.device("meta"):
            base = type(transformers.AutoModelForCausalLM.from_config(config).base_model)
        transformers.AutoModel._model_mapping.register(type(config), base, exist_ok=True)


def apply_overrides(config: PreTrainedConfig, options: ModelConfig) -> None:
    """Apply `hf_overrides` to a config, in place.

    Raises:
        ConfigError: transformers refuses a value.
    """
    from huggingface_hub.errors import StrictDataclassError

    values = dict(options.hf_overrides)
    stray = sorted(values.keys() & set(_OF_A_HEAD)) if (getattr(config, "vcls", None) or {}).get("heads") else []
    if stray:
        raise ConfigError(
            f"hf_overrides: {', '.join(stray)} would be those of one head, and the model has several with names, each with "
            "its own; convert the head anew."
        )
    for name in values:
        holder = _holder(config, name)
        if not hasattr(holder, name) and name not in _READ_HERE:
            warnings.warn(
                f"hf_overrides: {type(holder).__name__} has no {name!r}, so it may mean nothing."
                f"{nearest(name, [*vars(holder), 'num_labels', *_READ_HERE])}",
                stacklevel=2,
            )
    labels = options.label_overrides()
    count = len(labels) or values.get("num_labels", config.num_labels)
    for name in ("id2label", "label2id", "num_labels"):
        values.pop(name, None)
    try:
        if count != config.num_labels:
            config.num_labels = count
        if labels:
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: index for index, label in enumerate(labels)}
        for name, value in values.items():
            _override(_holder(config, name), name, value)
    except (TypeError, ValueError, AttributeError, StrictDataclassError) as error:
        raise ConfigError(f"hf_overrides: transformers refuses a value ({reason(error)}).") from error


def _holder(config: PreTrainedConfig, name: str) -> PreTrainedConfig:
    """The config that a field belongs to: of our own model type, the backbone's has what the outer one lacks."""
    inner: PreTrainedConfig | None = getattr(config, "backbone_config", None)
    if config.model_type != OWN_MODEL_TYPE or inner is None:
        return config
    return inner if name in _OF_THE_BACKBONE or (hasattr(inner, name) and not hasattr(config, name)) else config


def _override(config: PreTrainedConfig, name: str, value: Any) -> None:
    """Set a field; of a config inside, the fields that a mapping names."""
    from transformers import PreTrainedConfig

    inside = getattr(config, name, None)
    if isinstance(inside, PreTrainedConfig) and isinstance(value, Mapping):
        for each, new in value.items():
            _override(inside, each, new)
    else:
        setattr(config, name, value)
