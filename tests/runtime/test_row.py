"""Rows: where each sequence's queries, keys and earlier keys are."""

from __future__ import annotations

import threading

import pytest
import torch

from vllm_cls.runtime.context import current, running
from vllm_cls.runtime.row import KeyValues, PackedRow, spans_of


def past_of(num_tokens: int) -> KeyValues:
    states = torch.zeros(1, 2, num_tokens, 4)
    return KeyValues(num_tokens, [(states, states)])


def test_sequences_lie_one_behind_the_other() -> None:
    past, keep = past_of(5), KeyValues(2)
    first, second, third = spans_of([3, 1, 2], [None, past, None], [None, None, keep])
    assert (first.queries, first.keys, first.offset, first.num_keys) == (slice(0, 3), slice(0, 3), 0, 3)
    assert (second.queries, second.offset, second.num_queries, second.num_keys) == (slice(3, 4), 5, 1, 6)
    assert second.past is past and third.keep is keep and third.queries == slice(4, 6)


def test_the_pooled_token_is_the_only_query_and_knows_its_place_in_the_prompt() -> None:
    row = PackedRow(spans_of([3, 2], [None, past_of(5)]), torch.tensor([0, 4]), [0, 4])
    first, last = row.pooled_spans()
    assert (first.queries, first.keys, first.offset, first.num_keys) == (slice(0, 1), slice(0, 3), 0, 3)
    assert (last.queries, last.keys, last.offset, last.num_keys) == (slice(1, 2), slice(3, 5), 6, 7)


def test_kept_keys_and_values_are_copies_of_the_first_tokens_alone() -> None:
    key, value = torch.randn(1, 2, 100, 4), torch.randn(1, 2, 100, 4)
    kept = KeyValues(10)
    kept.append(key[:, :, 20:50], value[:, :, 20:50])
    assert torch.equal(kept.layers[0][0], key[:, :, 20:30]) and torch.equal(kept.layers[0][1], value[:, :, 20:30])
    assert kept.layers[0][0].untyped_storage().nbytes() == 2 * 10 * 4 * 4
    assert kept.num_bytes == 2 * 2 * 10 * 4 * 4


def test_a_row_is_seen_by_its_own_thread_and_only_while_it_runs() -> None:
    seen: list[PackedRow | None] = []
    row = PackedRow(spans_of([1]))
    with running(row=row):
        assert current.row is row and not current.exact
        with running(exact=True):
            assert current.row is row and current.exact
        thread = threading.Thread(target=lambda: seen.append(current.row))
        thread.start()
        thread.join()
        assert current.row is row and not current.exact
    assert seen == [None] and current.row is None
    with pytest.raises(ValueError), running(row=row):
        raise ValueError
    assert current.row is None
