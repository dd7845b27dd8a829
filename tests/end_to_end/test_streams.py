"""`LLM.classify_iter`: what is read of a stream, when, and what comes before its errors."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from vllm_cls import LLM, PromptError

from ..models import tiny


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(str(tiny.classifier("qwen2", tmp_path_factory.mktemp("qwen2")))) as llm:
        yield llm


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(str(tiny.classifier("bert", tmp_path_factory.mktemp("bert")))) as llm:
        yield llm


@dataclass
class Stream:
    """A stream that counts what was read of it."""

    total: int | None = None
    read: int = 0

    def __iter__(self) -> Iterator[list[int]]:
        while self.total is None or self.read < self.total:
            self.read += 1
            yield [20 + self.read % 50] * (1 + self.read % 7)


def test_a_stream_is_read_at_most_one_window_ahead(decoder: LLM) -> None:
    stream = Stream()
    outputs = decoder.classify_iter(stream)
    assert stream.read == 0
    for number in range(1, 1500):
        next(outputs)
        answered = next(total for total in itertools.accumulate(64 * 2**i for i in range(20)) if total >= number)
        assert stream.read <= answered + 2 * answered + 64
    outputs.close()


def test_an_endless_stream_can_be_left(decoder: LLM) -> None:
    stream = Stream()
    outputs = decoder.classify_iter(stream)
    assert len(list(itertools.islice(outputs, 100))) == 100
    read = stream.read
    outputs.close()
    assert stream.read == read
    assert not [each for each in threading.enumerate() if each.name.startswith("vllm_cls_tokenizer")]


def test_answers_come_before_an_error_of_the_stream(decoder: LLM) -> None:
    def fails() -> Iterator[list[int]]:
        yield from Stream(total=100)
        raise OSError("the disk is gone")

    answered = 0
    with pytest.raises(OSError, match="the disk is gone"):
        for output in decoder.classify_iter(fails()):
            assert output.error is None
            answered += 1
    assert answered >= 64


def test_a_stream_without_prompts(decoder: LLM) -> None:
    assert list(decoder.classify_iter([])) == []
    assert [each.error for each in decoder.classify_iter(Stream(total=64))] == [None] * 64


def test_a_stream_holds_no_prompt_that_was_answered_long_ago(encoder: LLM) -> None:
    alive: set[int] = set()

    class Prompt(list[int]):
        def __init__(self, ids: list[int]) -> None:
            super().__init__(ids)
            alive.add(id(self))

        def __del__(self) -> None:
            alive.discard(id(self))

    most = 0
    prompts = (Prompt([20 + i % 50, 21]) for i in range(3000))
    for number, _ in enumerate(encoder.classify_iter(prompts)):
        if number % 64 == 0:
            most = max(most, len(alive))
    assert most <= 1984 - 960 + 1024, "more than two windows"


def test_a_bad_prompt_in_a_stream_of_shared_beginnings(decoder: LLM) -> None:
    prompts: list[Any] = [[*range(20, 40), 50 + i] for i in range(10)]
    prompts[3], prompts[7] = [10**6], "good " * 400
    outputs = list(decoder.classify_iter(prompts))
    assert [each.error is None for each in outputs] == [i not in (3, 7) for i in range(10)]
    with pytest.raises(PromptError, match="prompt 3"):
        decoder.classify(prompts)


def test_a_stream_may_belong_to_its_thread(decoder: LLM) -> None:
    """A cursor of SQLite is refused in any thread but its own."""
    with sqlite3.connect(":memory:") as database:
        database.execute("create table texts (text)")
        database.executemany("insert into texts values (?)", [("good",), ("bad",)])
        rows = database.execute("select text from texts")
        assert len(list(decoder.classify_iter(text for (text,) in rows))) == 2


def test_answers_do_not_wait_for_prompts_to_come(decoder: LLM) -> None:
    """A stream that would keep one waiting is not asked for more while there are answers, nor when it is left."""
    asked = []

    def waits() -> Iterator[list[int]]:
        yield from Stream(total=64)
        asked.append("more")

    outputs = decoder.classify_iter(waits())
    assert len(list(itertools.islice(outputs, 64))) == 64 and not asked
    outputs.close()
    assert not asked
