"""Processes that are led: they hear every call, agree on failures, and end together."""

import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vllm_cls.errors import ConfigError, EngineDeadError, ModelError
from vllm_cls.runtime.parallel import ranks
from vllm_cls.runtime.parallel.leader import Leader
from vllm_cls.runtime.parallel.process import RankProcess
from vllm_cls.runtime.parallel.replica_leader import ReplicaLeader

PROGRAM = "tests.runtime.parallel.program"
Start = Callable[..., Leader]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts ranks, and ends them behind the test."""
    started: list[Leader] = []

    def make(does: str = "what it is told") -> Leader:
        started.append(Leader(2, PROGRAM, {"does": does}, "gloo"))
        return started[-1]

    yield make
    for each in started:
        each.close()


def test_every_call_is_heard_and_a_failure_on_all_ranks_is_agreed_on(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    leader = start()
    if sys.platform == "linux":  # so that a killed caller leaves nothing
        assert not list(tmp_path.iterdir())
    leader.announce("repeat", 1, "two")
    assert leader.hear("repeat") == [(1, "two")]
    leader.announce("fail", False)
    leader.agree(RuntimeError("here"), exhausted=False)
    assert leader.hear("goes on") == [None]
    with pytest.raises(ConfigError, match="uses torch.distributed already"):
        start()  # and what runs is not disturbed by it
    leader.announce("repeat")
    assert leader.hear("repeat") == [()]
    leader.announce("fail", True)  # for want of memory there, for another reason here: they would go on differently
    with pytest.raises(EngineDeadError, match="failed on rank 0 and not on all others .broken.; open the model again"):
        leader.agree(RuntimeError("broken"), exhausted=False)
    with pytest.raises(EngineDeadError, match="failed on rank 0"):
        leader.announce("repeat")


def test_a_forward_that_fails_on_the_leader_alone_ends_all(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "AGREEMENT_SECONDS", 0.5)
    leader = start()
    with pytest.raises(EngineDeadError, match="failed on rank 0 and not on all others .out of memory."):
        leader.agree(MemoryError("out of memory"), exhausted=True)


def test_a_rank_that_ends_is_noticed_and_a_closed_one_leaves_room_for_the_next(start: Start) -> None:
    first = start()
    first.close()
    leader = start()
    leader.announce("end", 3)
    with pytest.raises(EngineDeadError, match=r"rank 1 \(process \d+\) ended by itself, with exit code 3"):
        for _ in range(100):
            leader.announce("repeat")
            time.sleep(0.05)


def test_a_rank_that_does_not_start_is_an_error_at_once(start: Start) -> None:
    with pytest.raises(ModelError, match=r"rank 1 .*ended by itself, with exit code 7"):
        start(does="end at once")


def test_a_replica_that_ends_is_replaced_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ranks, "MOST_REPLACED", 1)
    caplog.set_level(logging.WARNING, "vllm_cls")
    leader = ReplicaLeader(2, PROGRAM, {"does": "be ready"})

    def once_there() -> list[RankProcess]:
        deadline = time.monotonic() + 60
        while not (found := leader.present()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    try:
        leader.hear("ready")
        (first,) = leader.present()
        leader.announce("end", 3)
        leader.ask([first], "answers", [["a"]])
        assert leader.answer(first) is None and leader.answer(first) is None
        (second,) = once_there()
        assert second is not first
        leader.ask([second], "answers", [["a", "b"]])
        assert leader.answer(second) == (["a", "b"],)
        told = [each.getMessage() for each in caplog.records]
        assert [each.partition(" (")[0] for each in told] == ["rank 1", "rank 1 takes part again."]
        assert "ended by itself, with exit code 3; another takes its place" in told[0]
        leader.announce("end", 4)
        with pytest.raises(EngineDeadError, match=r"rank 1 .* with exit code 4, and 1 were replaced in the last hour"):
            for _ in range(100):
                leader.present()
                time.sleep(0.05)
    finally:
        leader.close()
