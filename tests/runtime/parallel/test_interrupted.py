"""A call that is interrupted while it is announced leaves the ranks apart, and so ends them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch

from vllm_cls.runtime.engine import Engine
from vllm_cls.runtime.parallel.rank_engine import RankEngine
from vllm_cls.runtime.parallel.replicas import ReplicaEngine


class Interrupted:
    """Ranks of which Ctrl-C comes between the first and the last that hear of a call."""

    rank, size = 0, 3

    def __init__(self) -> None:
        self.ended: list[str] = []

    def announce(self, name: str, *arguments: Any) -> None:
        raise KeyboardInterrupt

    def end(self, reason: str) -> None:
        self.ended.append(reason)


@pytest.mark.parametrize("make", [RankEngine, ReplicaEngine])
def test_no_rank_is_left_with_half_a_call(make: Callable[..., Engine]) -> None:
    runner, ranks = mock.MagicMock(device=torch.device("cpu"), shares=False), Interrupted()
    runner.mode.bytes_a_token = 1
    engine = make(runner, ranks=ranks, max_num_batched_tokens=8, max_num_seqs=8)
    with pytest.raises(KeyboardInterrupt):
        engine.forget_prefixes()
    assert ranks.ended == ["a call was ended by KeyboardInterrupt"]
