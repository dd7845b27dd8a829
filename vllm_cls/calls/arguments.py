"""What `LLM`'s methods are given, checked and brought to one form."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError, nearest
from ..inputs.tokenization import Truncation
from ..params import PoolingParams

# Engine arguments of vLLM that have no meaning here: a script written for vLLM still runs.
_WITHOUT_MEANING = frozenset(
    "enforce_eager gpu_memory_utilization kv_cache_memory_bytes kv_cache_dtype swap_space cpu_offload_gb block_size "
    "enable_chunked_prefill disable_log_stats max_seq_len_to_capture disable_custom_all_reduce load_format "
    "tokenizer_mode tokenizer_revision skip_tokenizer_init served_model_name scheduling_policy model_impl "
    "generation_config compilation_config "
    "distributed_executor_backend calculate_kv_scales max_cpu_loras max_lora_cls_labels fully_sharded_loras "
    "lora_dtype".split()
)
_TOKENIZATION_KEYS = ("truncate_prompt_tokens", "max_length", "truncation_side", "truncation", "add_special_tokens")


def check_engine_args(given: Mapping[str, Any], known: set[str]) -> None:
    """Accept vLLM's engine arguments, with a warning where they have no effect here.

    Args:
        given: what `LLM` does not know itself.
        known: what it knows.

    Raises:
        ConfigError: one is unknown.
    """
    ignored = []
    for name in given:
        if name in _WITHOUT_MEANING:
            ignored.append(name)
        else:
            raise ConfigError(f"LLM has no option {name!r}.{nearest(name, known | _WITHOUT_MEANING)}")
    if ignored:
        warnings.warn(f"these options of vLLM have no effect here: {', '.join(sorted(ignored))}", stacklevel=3)


def per_prompt(params: PoolingParams | Sequence[PoolingParams], count: int) -> Sequence[PoolingParams]:
    """Params for each of `count` prompts.

    Raises:
        ConfigError: they are of another type or number.
    """
    if isinstance(params, PoolingParams):
        return [params] * count
    given: Any = params
    if not isinstance(given, Sequence) or not all(isinstance(each, PoolingParams) for each in given):
        raise ConfigError(f"pooling_params={params!r} is no PoolingParams and no list of them.")
    if len(params) != count:
        raise ConfigError(f"The lengths of prompts ({count}) and params ({len(params)}) must be the same.")
    return params


def truncation_of(kwargs: Mapping[str, Any]) -> tuple[Truncation, bool | None]:
    """`tokenization_kwargs` as a truncation and `add_special_tokens`.

    Raises:
        ConfigError: a key or a value is unknown.
    """
    if not isinstance(kwargs, Mapping):
        raise ConfigError(f"tokenization_kwargs={kwargs!r} is no mapping.")
    for name in kwargs:
        if name not in _TOKENIZATION_KEYS:
            raise ConfigError(f"tokenization_kwargs has no key {name!r}.{nearest(str(name), _TOKENIZATION_KEYS)}")
    truncation = kwargs.get("truncation")
    if truncation not in (None, True, False, "longest_first", "do_not_truncate"):
        raise ConfigError(
            f"truncation={truncation!r} is unknown; use True, 'longest_first', False or 'do_not_truncate'."
        )
    limit = kwargs.get("truncate_prompt_tokens", kwargs.get("max_length"))
    if truncation in (False, "do_not_truncate"):
        limit = None
    elif limit is None and truncation is not None:
        limit = -1
    return Truncation(limit, kwargs.get("truncation_side")), kwargs.get("add_special_tokens")
