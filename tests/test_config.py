"""Options that cannot be are refused when they are given, by their names."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_cls import ConfigError
from vllm_cls.config import ModelConfig, RuntimeConfig


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"convert": "clasify"}, "convert='clasify' is unknown"),
        ({"dtype": "float31"}, "dtype='float31' is unknown"),
        ({"quantization": "int4"}, "quantization='int4' is unknown"),
        ({"max_model_len": 0}, "max_model_len=0 must be at least 1"),
        ({"max_model_len": 1.5}, "max_model_len=1.5 is not a whole number"),
        ({"hf_overrides": [1]}, "no mapping"),
        ({"hf_overrides": {"model_type": "gpt2"}}, "cannot change model_type"),
        ({"max_model_length": 8}, "no option 'max_model_length'. Did you mean 'max_model_len'"),
    ],
)
def test_options_of_a_model(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ModelConfig.from_options("folder", **options)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"num_labels": 0}, "num_labels=0 is not a positive whole number"),
        ({"num_labels": True}, "num_labels=True is not"),
        ({"num_labels": "3"}, "num_labels='3' is not"),
        ({"id2label": ["a", "b"]}, "is no mapping of indices to names"),
        ({"id2label": {"x": "a"}}, "is no mapping of indices to names"),
        ({"id2label": {1: "a", 2: "b"}}, "must name 0 to 1"),
        ({"id2label": {0: "a", 1: "a"}}, "each differently"),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, "num_labels=3 but id2label has 2"),
    ],
)
def test_labels_that_cannot_be(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ModelConfig.from_options("folder", hf_overrides=overrides).label_overrides()


def test_labels_in_the_order_of_their_indices() -> None:
    overrides = {"num_labels": 2, "id2label": {"1": "b", "0": "a"}}
    assert ModelConfig.from_options("folder", hf_overrides=overrides).label_overrides() == ["a", "b"]
    assert ModelConfig.from_options("folder", hf_overrides={"num_labels": 2}).label_overrides() == []
    assert ModelConfig.from_options("folder", max_model_len=1, dtype="torch.bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize("name", ["max_num_batched_tokens", "max_num_seqs", "num_threads", "max_lora_rank"])
def test_numbers_of_the_runtime(name: str) -> None:
    assert getattr(RuntimeConfig(**{name: 1}), name) == 1
    for value in (0, -1, 1.0, True, "1"):
        with pytest.raises(ConfigError, match=f"{name}={value!r} must be a whole number, at least 1"):
            RuntimeConfig(**{name: value})


def test_memory_of_the_prefix_cache() -> None:
    assert RuntimeConfig(prefix_cache_bytes=0).prefix_cache_bytes == 0
    with pytest.raises(ConfigError, match="prefix_cache_bytes=-1"):
        RuntimeConfig(prefix_cache_bytes=-1)
