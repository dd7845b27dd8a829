"""Frozen options: how a model is read, how it runs, how its states are pooled.

Names and defaults follow vLLM's EngineArgs and PoolerConfig.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError, nearest
from .parsing.json_fields import CONFIG, MAX_LABELS, check_fields

SEQUENCE_POOLING = ("CLS", "LAST", "MEAN")
TOKEN_POOLING = ("ALL", "STEP")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
CONVERT_MODES = ("auto", "none", "classify", "token_classify", "reward", "decide")
AGGREGATIONS = ("none", "simple", "first", "average", "max")
QUANTIZATIONS = (None, "none", "int8", "fp8")
PARALLEL_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
DTYPES = ("auto", "float32", "bfloat16", "float16")
# What config.json may say, but for what has words of its own here.
_OVERRIDDEN = {name: kind for name, kind in CONFIG.items() if name not in ("model_type", "num_labels", "id2label")}


def sequence_poolings() -> list[str]:
    """The names of all pooling methods of texts: ours, then those of plugins, which are loaded for it."""
    from .registry import registry

    return [*SEQUENCE_POOLING, *registry().collect("vcls_pooling_methods")]


def find_pooling(name: str) -> str | None:
    """The canonical name of a pooling method of texts, from a name in any case; None if unknown."""
    known = SEQUENCE_POOLING if name.upper() in SEQUENCE_POOLING else sequence_poolings()
    return next((each for each in known if each.upper() == name.upper()), None)


def labels_of(config: Any) -> dict[int, str]:
    """The labels that a config of transformers names, by their indices, in their order."""
    return {int(index): str(label) for index, label in sorted(config.id2label.items())}


OWN_CODE = "transformers_modules"
"""The package in which transformers imports code that came with a checkpoint."""


def has_own_code(config: Any) -> bool:
    """Whether a config of transformers belongs to code that came with a checkpoint."""
    return is_own_code(type(config))


def is_own_code(config_class: type) -> bool:
    """As `has_own_code`, of a config's class."""
    return config_class.__module__.startswith(f"{OWN_CODE}.")


@dataclass(frozen=True)
class PoolerConfig:
    """How hidden states become logits and probabilities (vLLM's PoolerConfig).

    The logits are `(logit - logit_mean) / logit_sigma`, before the activation. A field left at None
    takes the checkpoint's value, then the architecture's default.

    Args:
        task: the task that the model serves, "classify", "token_classify" or "embed".
        pooling_type: shorthand for one of the next two.
        seq_pooling_type: "CLS" (first token), "LAST" (last token as given), "MEAN" or a plugin's (`vcls_pooling_methods`).
        tok_pooling_type: "ALL" (every token) or "STEP" (the tokens equal to `step_tag_id`).
        use_activation: False gives logits instead of probabilities.
        logit_bias: older name of `logit_mean`.
        logit_mean: subtracted from every logit.
        logit_sigma: divides every logit; 0 is an error.
        step_tag_id: token id that marks a step, for STEP.
        returned_token_ids: columns kept, for STEP.
    """

    task: str | None = None
    pooling_type: str | None = None
    seq_pooling_type: str | None = None
    tok_pooling_type: str | None = None
    use_activation: bool | None = None
    logit_bias: float | None = None
    logit_mean: float | None = None
    logit_sigma: float | None = None
    step_tag_id: int | None = None
    returned_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.pooling_type is not None:
            if not isinstance(self.pooling_type, str):
                raise ConfigError(f"PoolerConfig.pooling_type={self.pooling_type!r} is not a name.")
            self._split_pooling_type(self.pooling_type)
        self._check_pooling_types()
        if self.task not in (None, "classify", "token_classify", "embed"):
            raise ConfigError(
                f"PoolerConfig.task={self.task!r} is unknown; use 'classify', 'token_classify' or 'embed'."
            )
        if self.logit_bias is not None and self.logit_mean is not None:
            raise ConfigError("PoolerConfig: logit_bias is the older name of logit_mean; give one of them, not both.")
        for name in ("logit_bias", "logit_mean", "logit_sigma"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, (int, float)) or not math.isfinite(value)):
                raise ConfigError(f"PoolerConfig.{name}={value!r} is not a number.")
        if self.use_activation not in (None, True, False):
            raise ConfigError(f"PoolerConfig.use_activation={self.use_activation!r} is not true or false.")
        if self.logit_sigma == 0:
            raise ConfigError(
                "PoolerConfig.logit_sigma=0 would divide by zero; leave it out or give a positive number."
            )
        if self.step_tag_id is not None and type(self.step_tag_id) is not int:
            raise ConfigError(f"PoolerConfig.step_tag_id={self.step_tag_id!r} is no token id.")
        if self.returned_token_ids is not None:
            ids: Any = self.returned_token_ids
            if not isinstance(ids, (list, tuple)) or not all(type(each) is int for each in ids):
                raise ConfigError(f"PoolerConfig.returned_token_ids={ids!r} is no list of columns.")
            object.__setattr__(self, "returned_token_ids", tuple(ids))

    def _split_pooling_type(self, given: str) -> None:
        of_tokens = given.upper() in TOKEN_POOLING
        target = "tok_pooling_type" if of_tokens else "seq_pooling_type"
        name = given.upper() if of_tokens else find_pooling(given)
        if name is None:
            known = ", ".join([*sequence_poolings(), *TOKEN_POOLING])
            raise ConfigError(f"PoolerConfig.pooling_type={given!r} is unknown; use one of {known}.")
        if getattr(self, target) not in (None, name):
            raise ConfigError(f"PoolerConfig: pooling_type={name!r} contradicts {target}={getattr(self, target)!r}.")
        object.__setattr__(self, "pooling_type", name)
        object.__setattr__(self, target, name)

    def _check_pooling_types(self) -> None:
        sequences: Any = self.seq_pooling_type  # as a caller or a file gives it
        tokens: Any = self.tok_pooling_type
        if sequences is not None:
            found = find_pooling(sequences) if isinstance(sequences, str) else None
            if found is None:
                known = ", ".join(sequence_poolings())
                raise ConfigError(f"PoolerConfig.seq_pooling_type={sequences!r} is unknown; use one of {known}.")
            object.__setattr__(self, "seq_pooling_type", found)
        if tokens is not None:
            if not isinstance(tokens, str) or tokens.upper() not in TOKEN_POOLING:
                known = ", ".join(TOKEN_POOLING)
                raise ConfigError(f"PoolerConfig.tok_pooling_type={tokens!r} is unknown; use one of {known}.")
            object.__setattr__(self, "tok_pooling_type", tokens.upper())

    @property
    def mean(self) -> float | None:
        """`logit_mean` under either of its names."""
        return self.logit_mean if self.logit_mean is not None else self.logit_bias

    def over(self, defaults: PoolerConfig) -> PoolerConfig:
        """This configuration with its unset fields taken from `defaults`."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.mean is not None:  # either name set here hides both names there
            defaults = dataclasses.replace(defaults, logit_bias=None, logit_mean=None)
        merged = {name: getattr(defaults, name) if value is None else value for name, value in own.items()}
        merged["pooling_type"] = None
        return PoolerConfig(**merged)

    @classmethod
    def parse(cls, value: PoolerConfig | Mapping[str, Any] | None) -> PoolerConfig:
        """A PoolerConfig from itself, a mapping (as `--pooler-config` gives it) or None."""
        if value is None:
            return cls()
        if isinstance(value, PoolerConfig):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"pooler_config={value!r} is no PoolerConfig and no mapping of its fields.")
        known = [f.name for f in dataclasses.fields(cls)]
        for name in value:
            if name not in known:
                raise ConfigError(f"PoolerConfig has no field {name!r}.{nearest(name, known)}")
        return cls(**value)


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how it is read.

    Args:
        model: a folder, a hub id or a `.gguf` file.
        tokenizer: where the tokenizer is, if not beside the model.
        convert: "auto" takes a checkpoint as what it is; "classify" makes a classifier of it, "token_classify" one
            that labels each token, "reward" one of a single label whose logit is the answer; "decide" answers typed
            questions with the logits of a language model's label tokens.
        dtype: "auto" is float32 on a CPU without AMX, else bfloat16.
        device: "auto", "cpu", "cuda" or "cuda:N".
        tensor_parallel_size: processes (one a GPU) that hold a part of each weight.
        pipeline_parallel_size: processes (one a GPU) that hold some of the layers each.
        data_parallel_size: processes (one a GPU) that hold the whole model each, and share the prompts out.
        device_map: where parts of the model live, as of `from_pretrained`: "auto" or such, or parts by their names.
        max_memory: for "auto": how much of each device, as of `from_pretrained`.
        offload_folder: where weights that are on no device go; those of safetensors files stay there.
        quantization: "int8" on a CPU, "fp8" on a GPU that has it.
        hf_overrides: values that replace those of the model's config.
        plugin: the plugin that decides where several match.
        allow_pickle: read `.bin` weights (with `weights_only`).
        score_template: how pairs are written: Jinja with `query` and `document`, or a name (see `pair_template`).
        lora: the folder of a PEFT LoRA adapter, merged into the weights; its head is the model's.
        allowed_media_domains: hosts from which images and videos of prompts are fetched.
        allowed_local_media_path: the folder that local images and videos must be under; "" allows all.
        limit_mm_per_prompt: the most images and videos of a prompt, by modality.
        mm_processor_kwargs: what the model's processor of images and videos is told, where a prompt does not say it.
    """

    model: str
    tokenizer: str | None = None
    convert: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    device_map: str | Mapping[str, Any] | None = None
    max_memory: Mapping[Any, Any] | None = None
    offload_folder: str | None = None
    quantization: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    max_model_len: int | None = None
    plugin: str | None = None
    hf_overrides: Mapping[str, Any] = field(default_factory=dict)
    pooler_config: PoolerConfig = field(default_factory=PoolerConfig)
    chat_template: str | None = None
    score_template: str | None = None
    use_template: bool = True
    lora: str | None = None
    allowed_media_domains: tuple[str, ...] = ()
    allowed_local_media_path: str = ""
    limit_mm_per_prompt: Mapping[str, Any] = field(default_factory=dict)
    mm_processor_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_options(cls, model: object, **options: Any) -> ModelConfig:
        """A ModelConfig from options as a caller writes them.

        Raises:
            ConfigError: an option is unknown; the message names the nearest.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(f"there is no option {name!r}.{nearest(name, known)}")
        options["hf_overrides"] = options.get("hf_overrides") or {}
        options["pooler_config"] = PoolerConfig.parse(options.get("pooler_config"))
        options["dtype"] = str(options.get("dtype") or "auto").removeprefix("torch.")
        options["allowed_media_domains"] = _names(options.get("allowed_media_domains"))
        options["allowed_local_media_path"] = str(options.get("allowed_local_media_path") or "")
        for name in ("limit_mm_per_prompt", "mm_processor_kwargs"):
            options[name] = options.get(name) or {}
        return cls(model=str(model), **options)

    @property
    def num_processes(self) -> int:
        """Processes that the model is spread over."""
        sizes: list[int] = [getattr(self, name) for name in PARALLEL_SIZES]
        return max(sizes)

    def parts_on_devices(self) -> dict[str, Any]:
        """What was said of the devices that hold parts of the model, by the names of `from_pretrained`."""
        names = ("device_map", "max_memory", "offload_folder")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def media_options(self) -> dict[str, Any]:
        """What was said of images and videos, by the names of `MediaPolicy`."""
        names = ("allowed_media_domains", "allowed_local_media_path", "limit_mm_per_prompt")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    def label_overrides(self) -> list[str]:
        """The labels that `hf_overrides` names, in the order of their indices; empty where it names none.

        Raises:
            ConfigError: `id2label` is no mapping of 0, 1, 2 … to different names, or contradicts `num_labels`.
        """
        id2label, count = self.hf_overrides.get("id2label"), self.hf_overrides.get("num_labels")
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise ConfigError(f"hf_overrides: num_labels={count!r} is not a positive whole number.")
        if count is not None and count > MAX_LABELS:
            raise ConfigError(f"hf_overrides: num_labels={count} is more than {MAX_LABELS}.")
        if id2label is None:
            return []
        try:
            named = {int(index): str(label) for index, label in id2label.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"hf_overrides: id2label={id2label!r} is no mapping of indices to names.") from error
        if sorted(named) != list(range(len(named))) or len(set(named.values())) != len(named):
            raise ConfigError(f"hf_overrides: id2label={id2label!r} must name 0 to {len(named) - 1}, each differently.")
        if count not in (None, len(named)):
            raise ConfigError(f"hf_overrides: num_labels={count} but id2label has {len(named)} labels.")
        return [named[index] for index in range(len(named))]

    def __post_init__(self) -> None:
        if not isinstance(self.hf_overrides, Mapping):
            raise ConfigError(f"hf_overrides={self.hf_overrides!r} is no mapping of the config's fields to values.")
        check_fields(self.hf_overrides, _OVERRIDDEN, "hf_overrides", ConfigError)
        if "model_type" in self.hf_overrides:
            raise ConfigError("hf_overrides cannot change model_type; the weights are those of one architecture.")
        if self.max_model_len is not None and not isinstance(self.max_model_len, int):
            raise ConfigError(f"max_model_len={self.max_model_len!r} is not a whole number.")
        for name in PARALLEL_SIZES:
            if type(value := getattr(self, name)) is not int or value < 1:
                raise ConfigError(f"{name}={value!r} must be a whole number, at least 1.")
        self._check_device_map()
        several = [name for name in PARALLEL_SIZES if getattr(self, name) > 1]
        if len(several) > 1:
            raise ConfigError(f"{' and '.join(several)} do not go together yet; give one of them.")
        for name in ("limit_mm_per_prompt", "mm_processor_kwargs"):
            if not isinstance(getattr(self, name), Mapping):
                raise ConfigError(f"{name}={getattr(self, name)!r} is no mapping of names to values.")
        if self.convert not in CONVERT_MODES:
            raise ConfigError(f"convert={self.convert!r} is unknown; use one of {', '.join(CONVERT_MODES)}.")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype={self.dtype!r} is unknown; use one of {', '.join(DTYPES)}.")
        if self.quantization not in QUANTIZATIONS:
            known = ", ".join(repr(name) for name in QUANTIZATIONS if name)
            raise ConfigError(f"quantization={self.quantization!r} is unknown; use {known}.")
        if self.max_model_len is not None and self.max_model_len < 1:
            raise ConfigError(f"max_model_len={self.max_model_len} must be at least 1.")

    def _check_device_map(self) -> None:
        given = self.device_map
        if given is None:
            if self.max_memory is not None or self.offload_folder is not None:
                raise ConfigError("max_memory and offload_folder go with device_map='auto'; add it.")
            return
        if not isinstance(given, Mapping) and given not in DEVICE_MAPS:
            raise ConfigError(f"device_map={given!r} is no mapping and none of {', '.join(DEVICE_MAPS)}.")
        if isinstance(given, Mapping) and "" in given and len(given) > 1:
            raise ConfigError(
                "device_map: '' stands for the whole model, and other parts have places of their own; name each part."
            )
        excluded = {
            " or ".join(PARALLEL_SIZES): self.num_processes > 1,
            f"device={self.device!r}": self.device != "auto",
            f"quantization={self.quantization!r}": self.quantization not in (None, "none"),
            f"lora={self.lora!r}": self.lora is not None,
        }
        for other, is_given in excluded.items():
            if is_given:
                raise ConfigError(f"device_map does not go together with {other}; leave one of them out.")


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ConfigError(f"allowed_media_domains={value!r} is one name; give a list of them.")
    return tuple(str(each) for each in value or ())


@dataclass(frozen=True)
class RuntimeConfig:
    """How batches are filled and run.

    Args:
        max_num_batched_tokens: tokens in one forward, padding included; None takes the device's default.
        max_num_seqs: sequences in one forward.
        num_threads: of a CPU; None takes what torch uses, at most the physical cores and the container's share.
        enable_prefix_caching: prompts that begin with the same tokens share these tokens' keys and values.
        prefix_cache_bytes: memory for them; None takes the device's default.
        cuda_graphs: record the forwards of small batches on a GPU.
        max_loras: LoRA adapters held in memory; 0 takes none.
        max_lora_rank: an adapter of a larger rank is refused; None takes any.
    """

    max_num_batched_tokens: int | None = None
    max_num_seqs: int = 256
    num_threads: int | None = None
    enable_prefix_caching: bool = True
    prefix_cache_bytes: int | None = None
    cuda_graphs: bool = False
    max_loras: int = 0
    max_lora_rank: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_num_batched_tokens", "max_num_seqs", "num_threads", "max_lora_rank"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name}={value!r} must be a whole number, at least 1.")
        if self.prefix_cache_bytes is not None and self.prefix_cache_bytes < 0:
            raise ConfigError(f"prefix_cache_bytes={self.prefix_cache_bytes} must be 0 or more.")
