"""The queue of requests: fairness, bounds and what is dropped, by counting."""

from __future__ import annotations

import math
import random
import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_cls import EngineDeadError, QueueFullError
from vllm_cls.scheduler.waiting_queue import Request, Taken, WaitingQueue, Window


def request(count: int, length: int, *, task: str = "classify", same: bool = False, **options: Any) -> Request:
    """A request of `count` sequences of `length` tokens: a sequence is whatever has a length and can be compared."""
    return Request(task, [(*range(length - 1), "same" if same else object()) for _ in range(count)], **options)  # type: ignore[misc]


def queue(max_requests: int = 1000, max_tokens: int = 10**9) -> WaitingQueue:
    return WaitingQueue(max_requests, max_tokens)


def counted(taken: list[Taken]) -> Counter[Request]:
    return Counter(each.request for each in taken)


def test_a_large_request_gives_way_to_a_small_one() -> None:
    waiting = queue()
    large, small = request(1000, 10), request(1, 10)
    waiting.put(large)
    assert counted(waiting.take(Window(100, 100))) == {large: 10}
    waiting.put(small)
    assert counted(waiting.take(Window(100, 100))) == {large: 9, small: 1}


def test_no_request_is_done_later_than_if_all_shared_equally() -> None:
    numbers = random.Random(1)
    for _ in range(20):
        waiting, window = queue(), 40
        arrivals = sorted(
            (numbers.randrange(3000), numbers.choice([1, 1, 5, 40]), numbers.choice([5, 20])) for _ in range(40)
        )
        requests = [(at, request(count, length)) for at, count, length in arrivals]
        shared = shared_equally([(at, each.num_waiting_tokens) for at, each in requests])
        ends: dict[Request, float] = {}
        clock, coming = 0, list(requests)
        while coming or waiting.num_tokens:
            while coming and coming[0][0] <= clock:
                waiting.put(coming.pop(0)[1])
            if not waiting.num_tokens:
                clock = coming[0][0]
                continue
            taken = waiting.take(Window(window, 10**6))
            clock += sum(len(each.sequence) for each in taken)
            ends.update((each.request, clock) for each in taken)
        for (_, each), end in zip(requests, shared, strict=True):
            assert ends[each] <= end + 2 * window  # what runs is not interrupted


def shared_equally(jobs: list[tuple[int, int]]) -> list[float]:
    """When each of `(arrival, tokens)` ends, each getting its share of one token a tick; simulated, not computed."""
    left: dict[int, float] = {}
    ends = [0.0] * len(jobs)
    tick = 0
    while left or tick <= jobs[-1][0]:
        left.update((index, size) for index, (at, size) in enumerate(jobs) if at == tick)
        share = 1 / len(left) if left else 0.0
        for index in list(left):
            left[index] -= share
            if left[index] <= 1e-6:
                del left[index]
                ends[index] = tick + 1
        tick += 1
    return ends


def test_a_stream_of_small_requests_does_not_starve_a_large_one() -> None:
    waiting = queue()
    large = request(50, 10)
    waiting.put(large)
    for _ in range(3000):  # as much as the device takes, without end
        waiting.put(request(1, 10))
        waiting.put(request(1, 10))
        waiting.take(Window(20, 100))
    assert large.num_begun == 50


def test_requests_of_one_size_are_served_as_they_came() -> None:
    waiting = queue()
    requests = [request(2, 5) for _ in range(9)]
    served = []
    for number, each in enumerate(requests):
        waiting.put(each)
        if number % 3 == 2:
            served += waiting.take(Window(15, 100))
    while waiting.num_tokens:
        served += waiting.take(Window(15, 100))
    assert list(dict.fromkeys(each.request for each in served)) == requests


def test_identical_sequences_of_a_task_count_once() -> None:
    waiting = queue()
    for task in ("classify", "embed"):
        for _ in range(30):
            waiting.put(request(1, 10, task=task, same=True))
    taken = waiting.take(Window(20, 100))
    assert [each.repeated for each in taken].count(False) == 2 and len(taken) == 60


def test_a_window_is_bounded_by_tokens_and_by_sequences() -> None:
    waiting = queue()
    waiting.put(request(10, 10))
    assert len(waiting.take(Window(35, 100))) == 3
    assert len(waiting.take(Window(10**6, 2))) == 2
    waiting.put(longest := request(1, 1000))
    windows = [waiting.take(Window(500, 100)) for _ in range(2)]
    assert len(windows[0]) == 5
    assert [each.request for each in windows[1]] == [longest] and not waiting.num_tokens


def test_what_is_discarded_is_not_taken() -> None:
    waiting = queue()
    first, second = request(10, 10), request(3, 10)
    waiting.put(first)
    assert counted(waiting.take(Window(20, 100))) == {first: 2}
    waiting.put(second)
    waiting.discard(first)
    waiting.discard(first)
    assert waiting.num_tokens == second.num_waiting_tokens == 30
    assert counted(waiting.take(Window(20, 100))) == {second: 2}
    waiting.discard(second)
    assert waiting.num_tokens == 0


def test_what_is_too_late_is_not_taken() -> None:
    waiting = queue()
    late, other = request(10, 10, deadline=-1.0), request(1, 10)
    waiting.put(late)
    waiting.put(other)
    assert counted(waiting.take(Window(1000, 100))) == {other: 1}
    assert waiting.num_tokens == 0


def test_requests_in_flight_are_bounded() -> None:
    waiting = queue(max_requests=2)
    with waiting.place(), waiting.place():
        assert waiting.num_requests == 2
        with pytest.raises(QueueFullError, match="2 requests are in flight"), waiting.place():
            pass
    with pytest.raises(ZeroDivisionError), waiting.place():
        raise ZeroDivisionError
    assert waiting.num_requests == 0


def test_tokens_that_wait_are_bounded() -> None:
    waiting = queue(max_tokens=100)
    waiting.put(request(1, 99))
    with waiting.place():
        waiting.put(request(1, 5000))  # what reaches the limit is let in: else it never would be
        for refused in (lambda: waiting.put(request(1, 1)), lambda: waiting.place().__enter__()):
            with pytest.raises(QueueFullError, match="the 100 tokens that may wait do") as caught:
                refused()
            assert caught.value.retry_after == 1
    waiting.measured(1000, 2.0)
    with pytest.raises(QueueFullError, match="again in 6 s") as caught:
        waiting.put(request(1, 1))
    assert caught.value.retry_after == pytest.approx(5099 / 500 / 2)
    waiting.measured(1, 1000.0)
    with pytest.raises(QueueFullError) as caught:
        waiting.put(request(1, 1))
    assert caught.value.retry_after == 60
    waiting.take(Window(10**6, 10))
    waiting.put(request(1, 1))


def test_throughput_is_that_of_lately() -> None:
    waiting = queue()
    assert waiting.tokens_per_second is None
    for _ in range(100):
        waiting.measured(100, 1.0)
    assert waiting.tokens_per_second == pytest.approx(100)
    for _ in range(20):
        waiting.measured(1000, 1.0)
    assert waiting.tokens_per_second == pytest.approx(1000, rel=0.02)


def test_a_queue_that_refuses_still_serves_who_was_there() -> None:
    waiting = queue()
    with waiting.place():
        waiting.refuse("going home")
        with pytest.raises(EngineDeadError, match="going home"), waiting.place():
            pass
        waiting.put(request(1, 10))
        assert len(waiting.take(Window(10, 10))) == 1


def test_a_closed_queue_gives_back_who_waits_and_wakes_who_takes() -> None:
    waiting = queue()
    found: list[Any] = []
    taker = threading.Thread(target=lambda: found.append(waiting.take(Window(10, 10))))
    taker.start()
    assert waiting.close("closed") == []
    taker.join(10)
    assert found == [[]]
    other = queue()
    other.put(begun := request(2, 10))
    other.take(Window(10, 10))
    other.put(fresh := request(1, 10))
    assert set(other.close("closed")) == {begun, fresh} and other.num_tokens == 0
    assert other.take(Window(10, 10)) == []
    with pytest.raises(EngineDeadError, match="closed"):
        other.put(request(1, 10))


_ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 20), st.integers(1, 50), st.booleans()),
        st.tuples(st.just("take"), st.integers(1, 300), st.integers(1, 30), st.just(False)),
        st.tuples(st.just("discard"), st.integers(0, 30), st.just(0), st.just(False)),
    ),
    max_size=60,
)


@given(_ACTIONS)
@settings(max_examples=200)
def test_every_sequence_is_taken_once_or_dropped(actions: list[tuple[str, int, int, bool]]) -> None:
    waiting, requests, dropped = queue(), [], set()
    taken: Counter[tuple[Request, int]] = Counter()
    for name, first, second, same in actions:
        if name == "put":
            requests.append(request(first, second, same=same, deadline=math.inf))
            waiting.put(requests[-1])
        elif name == "discard" and first < len(requests):
            dropped.add(requests[first])
            waiting.discard(requests[first])
        elif name == "take" and waiting.num_tokens:
            window = waiting.take(Window(first, second))
            assert window
            fresh = [each for each in window if not each.repeated]
            assert len(fresh) <= second and (len(fresh) == 1 or sum(len(e.sequence) for e in fresh) <= first)
            taken.update((each.request, each.place) for each in window)
        alive = [each for each in requests if each not in dropped]
        assert waiting.num_tokens == sum(each.num_waiting_tokens for each in alive)
    while waiting.num_tokens:
        taken.update((each.request, each.place) for each in waiting.take(Window(100, 10)))
    assert not taken or max(taken.values()) == 1
    for each in requests:
        if each not in dropped:
            assert all((each, index) in taken for index in range(len(each.sequences)))
