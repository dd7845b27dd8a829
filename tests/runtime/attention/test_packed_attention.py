"""Packed attention equals attention of each sequence alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sliding_window_causal_mask_function,
)

from vllm_cls.runtime.attention import sdpa
from vllm_cls.runtime.attention.packed_attention import NotPackable, packed_attention
from vllm_cls.runtime.batch import pooled_spans, spans_of
from vllm_cls.runtime.context import running
from vllm_cls.runtime.mask import MOST_SCORES, SEES_ALL, PackedMask
from vllm_cls.runtime.row import PackedRow, StopAfterKeyValues

LENGTHS = [3, 1, 7]


def random_qkv(heads: int = 4, kv_heads: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, n, sum(LENGTHS), 8, generator=generator) for n in (heads, kv_heads, kv_heads))  # type: ignore[return-value]


@pytest.fixture(params=[MOST_SCORES, 12, 1], ids=["whole", "a few queries at a time", "one by one"], autouse=True)
def most(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Scores that are in memory at once."""
    monkeypatch.setattr(sdpa, "MOST_SCORES", request.param)
    return int(request.param)


@pytest.mark.parametrize("kind", ["causal", "full", "window"])
def test_it_equals_each_sequence_alone(kind: str) -> None:
    function = {
        "causal": causal_mask_function,
        "full": bidirectional_mask_function,
        "window": sliding_window_causal_mask_function(3),
    }[kind]
    query, key, value = random_qkv()
    with running(row=PackedRow(spans_of(LENGTHS))):
        output, _ = packed_attention(torch.nn.Module(), query, key, value, PackedMask(function), scaling=0.3)
    start = 0
    for length in LENGTHS:
        part = slice(start, start + length)
        index = torch.arange(length)
        mask = torch.ones(length, length, dtype=torch.bool)
        if kind != "full":
            mask = index[:, None] >= index[None]
        if kind == "window":
            mask &= index[:, None] - index[None] < 3
        expected = scaled_dot_product_attention(
            query[:, :, part], key[:, :, part].repeat_interleave(2, 1), value[:, :, part].repeat_interleave(2, 1),
            attn_mask=mask, scale=0.3,
        )  # fmt: skip
        assert torch.allclose(output[:, part], expected.transpose(1, 2), atol=1e-6)
        start += length


@pytest.mark.parametrize("window", [2, 100])
def test_soft_cap(window: int) -> None:
    query, key, value = random_qkv(kv_heads=4)
    mask = PackedMask(sliding_window_causal_mask_function(window) if window < 100 else causal_mask_function)
    with running(row=PackedRow(spans_of(LENGTHS))):
        output, _ = packed_attention(torch.nn.Module(), query, key, value, mask, scaling=1.0, softcap=2.0)
    for part in (slice(0, 3), slice(4, 11)):
        scores = torch.tanh(query[:, :, part] @ key[:, :, part].transpose(2, 3) / 2) * 2
        seen = torch.ones_like(scores[0, 0]).tril().triu(1 - window).bool()
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        assert torch.allclose(output[:, part], (weights @ value[:, :, part]).transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize("window", [3, 100])
@pytest.mark.parametrize(("offset", "num_queries"), [(0, 20), (13, 7)])
def test_parts_are_the_table_without_keys_that_nobody_sees(window: int, offset: int, num_queries: int) -> None:
    mask = PackedMask(sliding_window_causal_mask_function(window))
    queries, keys = torch.arange(offset, offset + num_queries)[:, None], torch.arange(20)[None]
    expected = (keys <= queries) & (keys > queries - window)
    for again in (False, True):
        parts = list(mask.parts(offset, num_queries, 20, torch.device("cpu"), most=45, fused=True))
        if window == 100 and offset == 0 and again:  # the kernel's own rule is enough
            assert parts == [(slice(0, 20), slice(0, 20), None, True)]
            continue
        found = torch.zeros(num_queries, 20, dtype=torch.bool)
        for part in parts:
            assert part.table is not None and part.table.numel() <= 45 and not part.causal
            found[part.queries, part.keys] = part.table[0, 0]
            assert window == 100 or part.keys.stop - part.keys.start <= 2 + window - 1
        assert torch.equal(found, expected)


def test_a_window_wider_than_the_sequence_needs_no_mask() -> None:
    mask = PackedMask(sliding_window_causal_mask_function(100))
    assert mask.seen(0, 5, 5, torch.device("cpu")) == (None, True)
    assert mask.seen(0, 1, 1, torch.device("cpu"))[0] is None


@pytest.mark.parametrize("causal", [True, False])
def test_sinks_are_a_key_without_a_value_in_each_sequence(causal: bool) -> None:
    query, key, value = random_qkv()
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0][: query.shape[1]])
    mask = PackedMask(causal_mask_function) if causal else PackedMask(None)
    with running(row=PackedRow(spans_of(LENGTHS))):
        output, _ = packed_attention(torch.nn.Module(), query, key, value, mask, scaling=1.0, s_aux=sinks)
    groups, start = query.shape[1] // key.shape[1], 0
    for length in LENGTHS:
        here = slice(start, start := start + length)
        k, v = (each[:, :, here].repeat_interleave(groups, dim=1) for each in (key, value))
        scores = query[:, :, here] @ k.transpose(2, 3)
        if causal:
            scores = scores.masked_fill(~torch.ones(length, length).tril().bool(), float("-inf"))
        weights = scores.exp() / (scores.exp().sum(-1, keepdim=True) + sinks.exp().view(1, -1, 1, 1))
        assert torch.allclose(output[:, here], (weights @ v).transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize("extra", ["position_bias", "cache"])
def test_what_it_cannot_do_is_refused(extra: str) -> None:
    query, key, value = random_qkv()
    with running(row=PackedRow(spans_of(LENGTHS))), pytest.raises(NotPackable, match=extra):
        packed_attention(torch.nn.Module(), query, key, value, None, **{extra: object()})
    with running(row=PackedRow(spans_of(LENGTHS))), pytest.raises(NotPackable, match="mask"):
        packed_attention(torch.nn.Module(), query, key, value, torch.zeros(1))  # type: ignore[arg-type]
    with running(row=PackedRow(spans_of([2]))), pytest.raises(NotPackable, match="reshapes"):
        packed_attention(torch.nn.Module(), query, key, value, None)


def test_the_last_layers_first_pass_leaves_its_keys_and_values_for_the_second() -> None:
    query, key, value = (torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    row = PackedRow(spans := spans_of([3, 2]), torch.tensor([0, 3]), pooled_spans(spans, [0, 3]))
    row.wants_keys_only = True
    with running(row=row):
        with pytest.raises(StopAfterKeyValues):
            packed_attention(torch.nn.Module(), query, key, value, SEES_ALL)
        assert not row.wants_keys_only and row.last_keys is not None
        assert row.last_keys[0] is key and row.last_keys[1] is value
        pooled, _ = packed_attention(torch.nn.Module(), query[:, :, [0, 3]], key[:, :, :2], value[:, :, :2], SEES_ALL)
    with running(row=PackedRow(spans_of([3, 2]))):
        whole, _ = packed_attention(torch.nn.Module(), query, key, value, SEES_ALL)
    assert torch.allclose(pooled, whole[:, [0, 3]], atol=1e-6)
