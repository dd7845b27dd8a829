"""Reading, computing and writing run at once, in order, in bounded memory, and no thread is left behind."""

from __future__ import annotations

import io
import itertools
import json
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.fake import FakeLLM
from tests.jobs.files import jsonl
from vllm_cls.jobs.classify import classify_file
from vllm_cls.jobs.overlap import Channel, ahead, at_once, behind
from vllm_cls.jobs.pipeline import steps as pipeline

PATIENCE = 2  # seconds after which a step that waits for another has failed


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert not [thread for thread in threading.enumerate() if thread not in before]


def counting(taken: list[int], error: BaseException | None = None) -> Generator[int, None, None]:
    try:
        for number in itertools.count():
            if number == 100 or (error is not None and number == 10):
                break
            taken.append(number)
            yield number
        if error is not None:
            raise error
    finally:
        taken.append(-1)


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_all_comes_in_order(limit: int) -> None:
    taken: list[int] = []
    with ahead(counting(taken), Channel(limit)) as numbers:
        assert list(numbers) == list(range(100))
    seen: list[int] = []
    with behind(seen.extend, Channel[int](limit)) as give:
        for number in range(100):
            give(number)
    assert seen == list(range(100))


def test_what_waits_is_bounded_by_weight_and_the_generator_is_closed() -> None:
    taken: list[int] = []
    full = threading.Event()

    class Told(Channel[int]):
        def put(self, item: int) -> None:
            if item == 5:
                full.set()  # it is about to wait
            super().put(item)

    with ahead(counting(taken), Told(10, lambda item: 2)) as numbers:
        assert full.wait(PATIENCE)
        assert taken == [0, 1, 2, 3, 4, 5]
        assert next(numbers) == 0
    assert taken[-1] == -1
    assert 99 not in taken


def test_an_error_of_the_reader_comes_behind_its_rows() -> None:
    seen = []
    with ahead(counting([], OSError("gone")), Channel(3)) as numbers, pytest.raises(OSError, match="gone"):
        for number in numbers:
            seen.append(number)
    assert seen == list(range(10))


def test_an_error_of_the_writer_ends_the_one_who_gives() -> None:
    def consume(numbers: Iterator[int]) -> None:
        for number in numbers:
            if number == 3:
                raise OSError("full")

    given = []
    with pytest.raises(OSError, match="full"), behind(consume, Channel[int](1)) as give:
        for number in itertools.count():
            give(number)
            given.append(number)
    assert len(given) <= 6
    with pytest.raises(OSError, match="full"), behind(consume, Channel[int](10)) as give:
        for number in range(4):  # the last one fails after all were given
            give(number)


def test_what_was_given_is_written_before_an_interruption_leaves() -> None:
    seen: list[int] = []
    concluded = []

    def consume(numbers: Iterator[int]) -> None:
        for number in numbers:
            seen.append(number)
        concluded.append(True)

    with pytest.raises(KeyboardInterrupt), behind(consume, Channel[int](10)) as give:
        for number in range(5):
            give(number)
        raise KeyboardInterrupt
    assert (seen, concluded) == ([0, 1, 2, 3, 4], [])


def test_standard_input_is_read_by_the_thread_that_computes() -> None:
    threads = []

    def items() -> Generator[int, None, None]:
        threads.append(threading.current_thread())
        yield 1

    with at_once(items(), Channel(1)) as numbers:
        assert list(numbers) == [1]
    assert threads == [threading.main_thread()]


class Watched(FakeLLM):
    """Tells when a window begins."""

    def __init__(self) -> None:
        super().__init__(window=4)
        self.windows = 0

    def begins(self) -> None:
        """Called with each window, before it is computed."""

    def classify_iter(self, prompts: Any, **options: Any) -> Iterator[Any]:
        stream = iter(prompts)
        while window := list(itertools.islice(stream, 4)):
            self.windows += 1
            self.begins()
            yield from super().classify_iter(window, **options)


def test_rows_are_read_while_others_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last_is_read = threading.Event()
    read_rows = pipeline.read_rows

    def watched(*arguments: Any) -> Generator[Any, None, None]:
        yield from read_rows(*arguments)
        last_is_read.set()

    class Waiting(Watched):
        def begins(self) -> None:
            assert last_is_read.wait(PATIENCE)

    monkeypatch.setattr(pipeline, "read_rows", watched)
    path = jsonl(tmp_path / "in.jsonl", [{"text": str(i)} for i in range(20)])
    assert classify_file(Waiting(), path, tmp_path / "out.jsonl").rows == 20


def test_rows_are_computed_while_others_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = threading.Event()

    class Telling(Watched):
        def begins(self) -> None:
            if self.windows == 2:
                second.set()

    class Slow(pipeline.Recorder):
        def record_all(self, answers: Any, writer: Any) -> None:
            def late() -> Iterator[Any]:
                for answer in answers:
                    assert second.wait(PATIENCE)
                    yield answer

            super().record_all(late(), writer)

    monkeypatch.setattr(pipeline, "Recorder", Slow)
    path = jsonl(tmp_path / "in.jsonl", [{"text": str(i)} for i in range(20)])
    assert classify_file(Telling(), path, tmp_path / "out.jsonl").rows == 20
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in written] == [str(i) for i in range(20)]


def test_a_large_row_counts_as_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    channels: list[Any] = []

    class Noted(Channel[Any]):
        most = 0

        def put(self, item: Any) -> None:
            super().put(item)
            self.most = max(self.most, len(self._items))
            channels.append(self)

    monkeypatch.setattr(pipeline, "Channel", Noted)
    monkeypatch.setattr(pipeline, "MOST_WAITING", 40)
    path = jsonl(tmp_path / "in.jsonl", [{"text": "x" * 40_960}] * 50)
    classify_file(FakeLLM(), path, tmp_path / "out.jsonl")
    assert {each.most for each in channels} <= {1, 2, 3}


def test_stats_say_where_the_time_went(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"text": "good"}] * 50)
    stats = classify_file(FakeLLM(), path, tmp_path / "out.jsonl").stats
    assert stats is not None
    assert stats.rows == 50
    assert 0 < stats.reading < stats.seconds
    assert 0 < stats.writing < stats.seconds
    assert (stats.computing, stats.busy, stats.tokens) == (0.0, 0.0, 0)  # the stand-in counts nothing


def test_stats_of_standard_input(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "good"}\n' * 3)))
    stats = classify_file(FakeLLM(), "-").stats
    assert stats is not None and 0 < stats.reading < stats.seconds
    assert len([json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]) == 3
