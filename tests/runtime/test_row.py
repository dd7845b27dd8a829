"""Rows: the keys that are kept, and who sees which row."""

from __future__ import annotations

import threading

import pytest
import torch

from vllm_cls.runtime.batch import spans_of
from vllm_cls.runtime.context import current, running
from vllm_cls.runtime.row import KeyValues, PackedRow


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
