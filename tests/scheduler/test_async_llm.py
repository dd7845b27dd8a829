"""`AsyncLLM` against `LLM`, and what it does with requests that compete, by counting what ran."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_cls import (
    LLM,
    AsyncLLM,
    ConfigError,
    DeadlineError,
    EngineDeadError,
    LoRARequest,
    PoolingParams,
    PromptError,
    QueueFullError,
)
from vllm_cls.scheduler.telemetry import NullTelemetry

from ..model.test_lora import train
from ..models import tiny

WORDS = "the film was good a boring end yes Python code is fun to read".split()
WAIT = 30


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tiny.classifier("bert", tmp_path_factory.mktemp("bert"), id2label={0: "a", 1: "b", 2: "c"})
    with LLM(str(folder), num_threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLM, list[LoRARequest]]]:
    pytest.importorskip("peft")
    root = tmp_path_factory.mktemp("qwen2")
    base = tiny.classifier("qwen2", root / "base", num_labels=1)
    adapters = [
        LoRARequest(name, number, str(train(base, root / name, ["q_proj", "v_proj"], labels, number)))
        for number, (name, labels) in enumerate([("one", 1), ("three", 3)], 1)
    ]
    with LLM(str(base), enable_lora=True, score_template="concat") as llm:
        yield llm, adapters


def run(llm: LLM, body: Callable[[AsyncLLM], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    async def within() -> Any:
        async with AsyncLLM(llm, **options) as engine:
            return await asyncio.wait_for(body(engine), WAIT)

    return asyncio.run(within())


@contextmanager
def blocked(llm: LLM) -> Iterator[None]:
    """The device is busy: whatever is taken meanwhile waits for it."""
    with llm._open.engine._lock:
        yield


async def queued(engine: AsyncLLM, *requests: Coroutine[Any, Any, Any], waiting: int | None = None) -> list[Any]:
    """Tasks of requests that all wait for the device, behind one that holds it.

    Args:
        waiting: tokens that then wait; None looks at none.
    """
    first = asyncio.ensure_future(engine.classify([9, 9, 9]))
    while not engine._batching._running:
        await asyncio.sleep(0.001)
    tasks = []
    for request in requests:
        before = engine.queued_tokens
        tasks.append(asyncio.ensure_future(request))
        while engine.queued_tokens == before:
            await asyncio.sleep(0.001)
    return [first, *tasks]


def text(numbers: random.Random, longest: int = 12) -> str:
    return " ".join(numbers.choices(WORDS, k=numbers.randint(1, longest)))


def same(found: Any, expected: Any) -> None:
    """One output or several are what `LLM` gives, but for rounding and the ids."""
    found, expected = (each if isinstance(each, list) else [each] for each in (found, expected))
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.prompt_token_ids == theirs.prompt_token_ids and type(mine) is type(theirs)
        if hasattr(mine.outputs, "data"):
            torch.testing.assert_close(mine.outputs.data, theirs.outputs.data, atol=1e-5, rtol=1e-5)
        elif hasattr(mine.outputs, "probs"):
            assert mine.outputs.probs == pytest.approx(theirs.outputs.probs, abs=1e-5)
            assert mine.outputs.logits == pytest.approx(theirs.outputs.logits, abs=1e-4)
            assert mine.outputs.id2label == theirs.outputs.id2label
        else:
            assert mine.outputs.score == pytest.approx(theirs.outputs.score, abs=1e-5)


# -- the same results ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_random_mixtures_give_what_each_alone_gives(qwen2: tuple[LLM, list[LoRARequest]], seed: int) -> None:
    llm, adapters = qwen2
    numbers = random.Random(seed)
    asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for _ in range(40):
        options: dict[str, Any] = {"lora_request": numbers.choice([None, *adapters])}
        method = numbers.choice(["classify", "classify", "encode", "score", "reward"])
        prompts: Any = [text(numbers) for _ in range(numbers.randint(1, 6))]
        arguments: tuple[Any, ...] = (prompts if numbers.random() < 0.5 else prompts[0],)
        if method in ("score", "reward"):
            options["lora_request"] = numbers.choice([None, adapters[0]])
        else:
            options["pooling_params"] = PoolingParams(use_activation=numbers.choice([None, True, False]))
        if method == "score":
            arguments = ("what is good", prompts)
        if method == "encode":
            options["pooling_task"] = numbers.choice(["classify", "embed"])
        asked.append((method, arguments, options))

    async def body(engine: AsyncLLM) -> list[Any]:
        return await asyncio.gather(*(getattr(engine, name)(*given, **options) for name, given, options in asked))

    answers = run(llm, body)
    for (method, arguments, options), found in zip(asked, answers, strict=True):
        one = method != "score" and isinstance(arguments[0], str)
        assert isinstance(found, list) is not one
        same(found, getattr(llm, method)(*arguments, **options))


def test_rerank_chat_and_pairs(qwen2: tuple[LLM, list[LoRARequest]], bert: LLM) -> None:
    llm, _ = qwen2
    documents = [f"{word} document" for word in WORDS]
    ranked = run(llm, lambda engine: engine.rerank("query", documents, top_n=3))
    expected = llm.rerank("query", documents, top_n=3)
    assert [(each.index, each.document) for each in ranked] == [(each.index, each.document) for each in expected]
    same(run(bert, lambda engine: engine.classify(("a film", "good"))), bert.classify(("a film", "good")))
    bert._open.processor.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"  # type: ignore[union-attr]
    messages = [{"role": "user", "content": "good"}, {"role": "assistant", "content": "film"}]
    same(run(bert, lambda engine: engine.chat(messages)), bert.chat(messages))
    same(run(bert, lambda engine: engine.chat([messages] * 2)), bert.chat([messages] * 2))


def test_spans_of_a_token_classifier(tmp_path: Path) -> None:
    with LLM(str(tiny.token_classifier("bert", tmp_path))) as llm:
        texts = ["the film was good", "yes"]
        found = run(llm, lambda engine: engine.token_classify(texts, aggregation_strategy="first"))
        expected = llm.token_classify(texts, aggregation_strategy="first")
        assert [each.outputs for each in found] == [each.outputs for each in expected]
        with pytest.raises(ConfigError, match="classifies tokens, not texts"):
            run(llm, lambda engine: engine.classify("good"))


def test_request_ids(bert: LLM) -> None:
    async def body(engine: AsyncLLM) -> None:
        assert (await engine.classify("good", request_id="mine")).request_id == "mine"
        several = await engine.encode(["good", "bad"], pooling_task="embed", request_id="mine")
        assert [each.request_id for each in several] == ["mine-0", "mine-1"]
        assert len({(await engine.classify("good")).request_id for _ in range(3)}) == 3

    run(bert, body)


# -- what runs together, and what runs at all ------------------------------------------------------------


def test_identical_prompts_run_once_and_salts_keep_them_apart(bert: LLM) -> None:
    async def body(engine: AsyncLLM) -> tuple[list[Any], Any]:
        before = bert.counters
        with blocked(bert):
            salted = [engine.classify("good film", cache_salt=salt) for salt in ("x", "y", "x")]
            tasks = await queued(engine, *(engine.classify("good film") for _ in range(5)), *salted)
        return await asyncio.gather(*tasks), bert.counters - before

    answers, counted = run(bert, body)
    assert counted.num_prompts == 9 and counted.num_duplicates == 4 + 1
    for each in answers[1:]:
        same(each, bert.classify("good film"))
    assert len({id(each.outputs.probs) for each in answers}) == 9


def test_documents_of_one_query_share_it(qwen2: tuple[LLM, list[LoRARequest]]) -> None:
    llm, _ = qwen2
    llm.reset_prefix_cache()
    query = " ".join(WORDS) + " "

    async def body(engine: AsyncLLM) -> Any:
        before = llm.counters
        await engine.rerank(query, ["film", "code", "end", "python", "yes", "no"])
        return llm.counters - before

    counted = run(llm, body)
    assert counted.num_shared_tokens >= 6 * 8
    assert counted.num_tokens < counted.num_prompt_tokens


def test_what_is_cancelled_before_it_begins_does_not_run(bert: LLM) -> None:
    async def body(engine: AsyncLLM) -> Any:
        before = bert.counters
        with blocked(bert):
            tasks = await queued(engine, *(engine.classify([20 + number, 21]) for number in range(10)))
            for task in tasks[1:6]:
                task.cancel()
            answers = await asyncio.gather(*tasks[1:6], return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in answers)
            assert engine.queued_tokens == 10 and engine.load == 6
        await asyncio.gather(*tasks[6:])
        return bert.counters - before

    assert run(bert, body).num_prompts == 6


def test_what_is_too_late_does_not_run(bert: LLM) -> None:
    async def body(engine: AsyncLLM) -> Any:
        before = bert.counters
        with blocked(bert):
            tasks = await queued(engine, engine.classify(["good"] * 5, timeout=0.3), engine.classify("bad", timeout=60))
            with pytest.raises(DeadlineError, match=r"within 0\.3 s"):
                await tasks[1]
            assert isinstance(tasks[1].exception(), TimeoutError)
        await tasks[2]
        return bert.counters - before

    assert run(bert, body).num_prompts == 2


def test_a_bad_prompt_costs_its_request_alone(bert: LLM) -> None:
    async def body(engine: AsyncLLM) -> list[Any]:
        return await asyncio.gather(
            engine.classify("good"),
            engine.classify(["good", [10**6], "film"]),
            engine.classify("good " * 100),
            engine.classify("good " * 100, tokenization_kwargs={"truncate_prompt_tokens": -1}),
            engine.classify(["good"], pooling_params=[PoolingParams()] * 2),
            engine.score("a", "b"),
            engine.encode("good"),
            engine.classify([]),
            return_exceptions=True,
        )

    good, listed, long, cut, params, score, encode, empty = run(bert, body)
    same(good, bert.classify("good"))
    assert isinstance(listed, PromptError) and "prompt 1: Token id 1000000" in str(listed)
    assert isinstance(long, PromptError) and cut.truncated
    for each, words in (
        (params, "same"),
        (score, "num_labels 1"),
        (encode, "pooling_task"),
        (empty, "at least one prompt"),
    ):
        assert isinstance(each, (ConfigError, PromptError)) and words in str(each), each


def test_a_large_request_is_tokenized_and_run_in_turns(bert: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    processor = type(bert._open.processor)
    tokenize = processor.tokenize

    def spy(self: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        sizes.append(len(prompts))
        return tokenize(self, prompts, *args, **options)

    monkeypatch.setattr(processor, "tokenize", spy)
    ran: list[int] = []

    async def body(engine: AsyncLLM) -> None:
        run_ = engine._batching._run
        engine._batching._run = lambda task, sequences: (ran.append(len(sequences)), run_(task, sequences))[1]  # type: ignore[method-assign,assignment,func-returns-value]
        prompts = [[20 + i % 50, 20 + i // 50] for i in range(1500)]
        with blocked(bert):
            tasks = await queued(engine, engine.classify(prompts), engine.classify("film"))
        done: list[Any] = []
        for task in tasks[1:]:
            task.add_done_callback(done.append)
        answers = await asyncio.gather(*tasks)
        assert done == [tasks[2], tasks[1]]
        same(answers[1], bert.classify(prompts))

    run(bert, body)
    assert max(sizes[:-1]) <= 64 and sum(ran) == 1502 and len(ran) > 4


# -- bounds, death, the end ------------------------------------------------------------------------------


def test_a_full_queue_refuses(bert: LLM) -> None:
    async def requests(engine: AsyncLLM) -> None:
        with blocked(bert):
            tasks = await queued(engine, engine.classify("good"))
            with pytest.raises(QueueFullError) as caught:
                await engine.classify("good")
            assert 1 <= caught.value.retry_after <= 60 and engine.load == 2
        await asyncio.gather(*tasks)
        await engine.classify("good")
        assert engine.load == 0

    async def tokens(engine: AsyncLLM) -> None:
        with blocked(bert):
            tasks = await queued(engine, engine.classify("good " * 20))
            with pytest.raises(QueueFullError):
                await engine.classify("good")
        await asyncio.gather(*tasks)
        await engine.classify("good")

    run(bert, requests, max_queued_requests=2)
    run(bert, tokens, max_queued_tokens=20)


def test_when_the_engine_dies_all_are_told(bert: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: AsyncLLM) -> None:
        def die(*_: Any) -> None:
            raise SystemExit("a fault")

        engine._batching._run = die  # type: ignore[method-assign,assignment]
        answers = await asyncio.gather(*(engine.classify("good") for _ in range(5)), return_exceptions=True)
        assert all(isinstance(each, EngineDeadError) for each in answers)
        engine._batching._thread.join(WAIT)
        assert not engine.is_alive
        with pytest.raises(EngineDeadError, match="died"):
            await engine.classify("good")
        assert await engine.drain(1)

    run(bert, body)


def test_an_error_of_ours_is_not_the_end(bert: LLM) -> None:
    async def body(engine: AsyncLLM) -> None:
        run_ = engine._batching._run

        def fail(task: str, sequences: Any) -> Any:
            if any(7 in each.token_ids for each in sequences):
                raise KeyError("a fault")
            return run_(task, sequences)

        engine._batching._run = fail  # type: ignore[method-assign]
        with blocked(bert):
            tasks = await queued(engine, engine.classify([6, 7]), engine.classify([6, 8]))
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[1], KeyError) and answers[2].error is None and engine.is_alive

    run(bert, body)


def test_draining_answers_who_is_there_and_lets_nobody_in(bert: LLM) -> None:
    async def body(engine: AsyncLLM) -> None:
        with blocked(bert):
            tasks = await queued(engine, engine.classify("good"))
            assert not await engine.drain(0.02)
            with pytest.raises(EngineDeadError, match="shutting down"):
                await engine.classify("good")
        assert await engine.drain() and engine.load == 0 and engine.is_alive
        assert all(task.done() and task.exception() is None for task in tasks)

    run(bert, body)


def test_closing_fails_who_waits(bert: LLM) -> None:
    async def body(engine: AsyncLLM) -> None:
        with blocked(bert):
            tasks = await queued(engine, engine.classify("good"))
            closer = threading.Thread(target=engine.close)
            closer.start()
            with pytest.raises(EngineDeadError, match="shutting down"):
                await tasks[1]
        await tasks[0]
        closer.join(WAIT)
        assert not engine.is_alive

    run(bert, body)
    assert bert.classify("good")  # it was lent, not given


def test_the_llm_is_made_or_taken(bert: LLM) -> None:
    with pytest.raises(ConfigError, match="max_model_len: give these to the LLM"):
        AsyncLLM(bert, max_model_len=3)
    with pytest.raises(TypeError, match="bogus"):
        run(bert, lambda engine: engine.classify("good", bogus=1))  # type: ignore[call-arg]


class Told(NullTelemetry):
    def __init__(self) -> None:
        self.stages: Counter[str] = Counter()
        self.counts: Counter[Any] = Counter()

    def request_queued(self, prompts: int, tokens: int) -> None:
        self.counts["prompts"] += prompts
        self.counts["tokens"] += tokens

    def stage(self, name: str, began: float, ended: float) -> None:
        assert 0 <= ended - began < WAIT
        self.stages[name] += 1

    def batch(self, sequences: int, tokens: int, budget: int, tokens_saved: int) -> None:
        self.counts["batched"] += sequences
        self.counts["saved"] += tokens_saved

    def rejected(self, reason: str) -> None:
        self.counts[reason] += 1

    def truncated(self, count: int) -> None:
        self.counts["truncated"] += count

    def predicted(self, label: str) -> None:
        self.counts["predicted", label] += 1


def test_telemetry(bert: LLM) -> None:
    told = Told()

    async def body(engine: AsyncLLM) -> list[Any]:
        with blocked(bert):
            tasks = await queued(
                engine,
                engine.classify(["good", "good"]),
                engine.classify("good " * 100, tokenization_kwargs={"truncate_prompt_tokens": 10}),
                engine.classify("late", timeout=0.3),
                engine.encode("good", pooling_task="embed"),
                engine.classify("gone"),
            )
            tasks[5].cancel()
            await asyncio.wait([tasks[3], tasks[5]])
            engine._queue.max_requests = 4
            with pytest.raises(QueueFullError):
                await engine.classify("good")
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = run(bert, body, telemetry=told)
    labels = [answers[0], *answers[1], answers[2]]
    assert told.stages == {"tokenize": 6, "queue": 4, "compute": 4}
    assert {told.counts[name] for name in ("queue_full", "deadline", "cancelled", "truncated")} == {1}
    assert told.counts["batched"] == 5 and told.counts["prompts"] == 7
    assert told.counts["saved"] == len(answers[1][0].prompt_token_ids)
    for label, count in Counter(each.outputs.label for each in labels).items():
        assert told.counts["predicted", label] == count


def test_a_turn_of_tokenizing_is_many_short_prompts_or_a_long_one() -> None:
    from vllm_cls.async_llm import _turn

    long = "a" * 70_000
    assert _turn(["good"] * 100, 0) == 64 and _turn(["good"] * 100, 64) == 100
    assert _turn([long, "good"], 0) == 1 and _turn(["good", long], 0) == 1 and _turn(["good", long], 1) == 2
    assert _turn([("good", long), {"prompt": long}, [5] * 70_000, "good"], 0) == 1
    assert _turn([{"messages": [{"role": "user", "content": "a"}]}, [5, 6], ("a", "b")], 0) == 3
