"""Multiply-adds against counts by hand."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.models import tiny
from vllm_cls.adapters import as_seq_cls_model
from vllm_cls.bench.flops import Attention, Cost, TokenCounts, cost_of, shared_prefixes


def cost(name: str, **values: object) -> Cost:
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(tiny.config_of(name, **values))
    return cost_of(model)


def test_bert_by_hand() -> None:
    layer = 4 * 32 * 32 + 2 * 32 * 48
    found = cost("bert")
    assert found.per_token == 3 * layer
    assert found.last_layer == layer
    assert found.last_key_value == 2 * 32 * 32
    assert found.per_sequence == 32 * 32 + 32 * 3  # pooler, classifier
    assert found.shapes == {(32, 32): 12, (32, 48): 3, (48, 32): 3}
    assert found.required([5, 7]) == 12 * 3 * layer + 2 * (32 * 32 + 96) + 3 * 2 * 32 * (25 + 49)


def test_gpt2_by_hand() -> None:
    layer = 32 * 96 + 32 * 32 + 2 * 32 * 128
    found = cost("gpt2")
    assert found.per_token == 3 * layer
    assert found.last_key_value == 2 * 32 * 32  # of the fused 32 × 96
    assert found.required([4]) == 4 * 3 * layer + 32 * 3 + 3 * 2 * 32 * (1 + 2 + 3 + 4)


def test_qwen2_by_hand() -> None:
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    found = cost("qwen2")
    assert found.per_token == 3 * layer
    assert found.last_key_value == 2 * 32 * 16
    assert found.per_sequence == 32 * 3


def test_a_model_without_attention_counts_its_linear_layers() -> None:
    with torch.device("meta"):
        model = as_seq_cls_model(transformers.MambaModel)(tiny.config_of("mamba"))
    found = cost_of(model)
    layer = sum(
        each.weight.numel() for each in model.base_model.layers[0].modules() if isinstance(each, torch.nn.Linear)
    )
    assert layer > 0
    assert found.required([5, 7]) == 12 * 2 * layer + 2 * 32 * 3


@pytest.mark.parametrize("name", tiny.NATIVE)
def test_every_family_has_a_cost(name: str) -> None:
    found = cost(name)
    assert found.required([9]) > found.required([5]) > 0


def test_a_layer_that_runs_many_times_counts_many_times() -> None:
    layer = 4 * 32 * 32 + 2 * 32 * 48
    assert cost("albert").per_token == 3 * layer + 16 * 32  # and the projection of the embeddings


@pytest.mark.parametrize(
    ("attention", "pairs"),
    [
        (Attention(8, causal=False), 36),
        (Attention(8, causal=True), 21),
        (Attention(8, causal=True, window=2), 11),
        (Attention(8, causal=False, window=2), 16),
    ],
)
def test_pairs_of_six_tokens(attention: Attention, pairs: int) -> None:
    assert attention.pairs(6) == pairs


def test_windows_are_those_of_the_config() -> None:
    windows = [layer.window for layer in cost("qwen2-window").attention]
    assert windows == [None, 8, 8]


def test_pruning_and_sharing_leave_less() -> None:
    found = cost("gpt2")
    lengths = [10, 10]
    assert found.executed(lengths, TokenCounts(20)) == found.required(lengths)
    queries = found.last_layer - found.last_key_value
    last_pairs = 2 * 32 * (2 * 55 - 20)
    assert found.executed(lengths, TokenCounts(20, pruned=18)) == found.required(lengths) - 18 * queries - last_pairs
    shared = found.executed(lengths, TokenCounts(14, saved_pairs=21))
    assert shared == found.required(lengths) - 6 * found.per_token - 3 * 2 * 32 * 21


def test_what_a_trie_saves() -> None:
    assert shared_prefixes([[1, 2, 3, 9], [1, 2, 3, 4], [1, 5]]) == (3 + 1, 6 + 1)
    assert shared_prefixes([[1], [2]]) == (0, 0)
