"""The engine's thread, with a model that is made of gates and counters."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from vllm_cls import EngineDeadError, PromptError
from vllm_cls.scheduler.continuous_batching import ContinuousBatching
from vllm_cls.scheduler.telemetry import NullTelemetry
from vllm_cls.scheduler.waiting_queue import Request, WaitingQueue, Window

WAIT = 20  # seconds; a test that works never waits as long


class Told(NullTelemetry):
    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def batch(self, sequences: int, tokens: int, budget: int, tokens_saved: int) -> None:
        self.batches.append((sequences, tokens, budget, tokens_saved))


class Fake:
    """A model whose answer is the sequence itself: "bad" fails its run, "odd" its prompt, "end" the thread."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, list[str]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.done: list[Request] = []
        self.finished = threading.Semaphore(0)
        self.told = Told()
        self.queue = WaitingQueue(1000, 10**6)
        self.batching = ContinuousBatching(self.queue, self.run, lambda: Window(100, 50), self.finish, self.told)

    def run(self, task: str, sequences: Sequence[Any]) -> list[Any]:
        self.runs.append((task, list(sequences)))
        self.entered.release()
        assert self.gate.wait(WAIT)
        if "bad" in sequences:
            raise ValueError("bad")
        if "end" in sequences:
            raise SystemExit("end")
        return [PromptError(each) if each == "odd" else Row(each) for each in sequences]

    def finish(self, requests: Sequence[Request]) -> None:
        for each in requests:
            self.done.append(each)
            self.finished.release()

    def put(self, *sequences: str, task: str = "classify") -> Request:
        self.queue.put(request := Request(task, sequences))  # type: ignore[arg-type]
        return request

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.finished.acquire(timeout=WAIT)


class Row(str):
    num_cached_tokens = 1


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    yield made
    made.gate.set()
    made.batching.close()


def block(fake: Fake) -> Request:
    """A request that runs, and goes on running."""
    fake.gate.clear()
    request = fake.put("first")
    assert fake.entered.acquire(timeout=WAIT)
    return request


def test_what_arrives_while_one_runs_makes_the_next_window(fake: Fake) -> None:
    first = block(fake)
    others = [fake.put(f"{number:02}") for number in range(30)]
    fake.gate.set()
    fake.wait(31)
    assert [len(sequences) for _, sequences in fake.runs] == [1, 30]
    assert fake.done == [first, *others]
    assert [each.answers for each in others] == [[f"{number:02}"] for number in range(30)]
    assert all(each.queued_at <= each.began_at <= each.ended_at for each in fake.done)


def test_a_request_larger_than_a_window_is_answered_once_it_is_whole(fake: Fake) -> None:
    texts = [f"{number:09}" for number in range(40)]
    request = fake.put(*texts)
    fake.wait()
    assert request.answers == texts and fake.done == [request]
    assert [len(sequences) for _, sequences in fake.runs] == [11, 11, 11, 7]


def test_tasks_run_one_after_the_other(fake: Fake) -> None:
    block(fake)
    for task in ("embed", "classify", "embed"):
        fake.put("a", task=task)
    fake.gate.set()
    fake.wait(4)
    assert fake.runs[1:] == [("embed", ["a", "a"]), ("classify", ["a"])]


def test_what_fails_a_run_costs_its_request_alone(fake: Fake) -> None:
    block(fake)
    requests = [fake.put("good", "fine"), fake.put("well", "bad"), fake.put("odd", "fine")]
    fake.gate.set()
    fake.wait(4)
    good, bad, odd = requests
    assert good.answers == ["good", "fine"] and good.error is None
    assert isinstance(bad.error, ValueError)
    assert odd.error is None and isinstance(odd.answers[0], PromptError) and odd.answers[1] == "fine"
    assert fake.batching.is_alive


def test_the_rest_of_a_request_that_failed_does_not_run(fake: Fake) -> None:
    request = fake.put("bad", *(f"{number:09}" for number in range(100)))
    fake.wait()
    assert isinstance(request.error, ValueError) and fake.queue.num_tokens == 0
    fake.put("good")
    fake.wait()
    assert len(fake.runs) == 2


def test_when_the_thread_dies_nobody_waits_any_more(fake: Fake) -> None:
    running = block(fake)
    ends, waits = fake.put("end"), fake.put(*(f"{number:09}" for number in range(100)))
    fake.gate.set()
    fake.wait(3)
    fake.batching._thread.join(WAIT)
    assert not fake.batching.is_alive
    assert running.error is None
    for each in (ends, waits):
        assert isinstance(each.error, EngineDeadError) and "SystemExit" in str(each.error)
    with pytest.raises(EngineDeadError, match="died"):
        fake.put("good")


def test_closing_finishes_what_runs_and_fails_what_waits(fake: Fake) -> None:
    running = block(fake)
    waits = fake.put("good")
    closer = threading.Thread(target=fake.batching.close)
    closer.start()
    fake.wait()
    assert isinstance(waits.error, EngineDeadError) and running.error is None
    fake.gate.set()
    closer.join(WAIT)
    assert running.answers == ["first"] and not fake.batching.is_alive


def test_telemetry_is_told_of_each_window(fake: Fake) -> None:
    block(fake)
    fake.put("1234", "1234", "odd")
    fake.gate.set()
    fake.wait(2)
    assert fake.told.batches == [(1, 5, 100, 1), (3, 11, 100, 1 + 4)]
