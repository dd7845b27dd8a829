"""Batches: what shares one, how many forwards run, what runs once."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models import tiny
from vllm_cls import LLM, AsyncLLM, ConfigError, EngineDeadError, PoolingParams, PromptError
from vllm_cls.runtime.batch import ForwardItem, TokenSequence, packed_batch, padded_batch
from vllm_cls.runtime.schedule import Budget, plan_batches


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(str(tiny.classifier("qwen2", tmp_path_factory.mktemp("qwen2"))), max_num_batched_tokens=64)


def counted(llm: LLM, prompts: list[list[int]]) -> tuple[int, int]:
    """Forwards and tokens that classifying these prompts takes."""
    before = llm.counters
    llm.classify(prompts)
    done = llm.counters - before
    return done.num_forwards, done.num_tokens


def test_three_lengths_share_one_forward_without_padding(llm: LLM) -> None:
    assert llm.describe()["execution"] == "packed"
    assert counted(llm, [[20] * 5, [21] * 11, [22] * 3]) == (1, 19)


def test_batches_hold_the_token_budget(llm: LLM) -> None:
    prompts = [[20 + i] * 20 for i in range(7)]
    assert counted(llm, prompts) == (3, 140)


def test_identical_prompts_run_once(llm: LLM) -> None:
    outputs = llm.classify([[20] * 5, [21] * 7, [20] * 5])
    assert outputs[0].outputs == outputs[2].outputs != outputs[1].outputs
    assert counted(llm, [[20] * 5] * 10) == (1, 5)


def test_a_prompt_over_the_budget_runs_alone(tmp_path: Path) -> None:
    llm = LLM(str(tiny.classifier("qwen2", tmp_path)), max_num_batched_tokens=8)
    assert counted(llm, [[20] * 30, [21] * 3, [22] * 4]) == (2, 37)


def test_a_batch_that_fails_is_run_one_by_one(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    runner: Any = llm._open.engine.runner
    forward = runner.logits

    def fails_on_long(sequences: list[ForwardItem]) -> torch.Tensor:
        if any(len(each) == 9 for each in sequences):
            raise RuntimeError("out of something")
        return forward(sequences)

    monkeypatch.setattr(runner, "logits", fails_on_long)
    good, bad, also_good = llm.classify_iter([[20] * 5, [20] * 9, [21] * 5])
    assert good.error is None and also_good.error is None
    assert "refuses this prompt of 9 tokens: out of something" in str(bad.error)
    with pytest.raises(PromptError, match="9 tokens"):
        llm.classify([20] * 9)


def test_a_device_that_failed_is_no_prompts_fault(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(works: list[ForwardItem]) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nsome advice")

    monkeypatch.setattr(llm._open.engine.runner, "logits", fails)
    with pytest.raises(
        EngineDeadError, match=r"the device failed \(CUDA error: an illegal memory access was encountered\)"
    ):
        llm.classify([[20] * 5, [21] * 5])

    async def ask() -> None:
        async with AsyncLLM(llm) as engine:
            with pytest.raises(EngineDeadError, match="the engine died"):
                await engine.classify([20] * 5)
            engine._batching._thread.join(30)
            assert not engine.is_alive

    asyncio.run(ask())


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2)), max_size=40),
    st.integers(1, 64),
    st.integers(1, 8),
    st.integers(1, 4),
    st.booleans(),
)
def test_every_plan_keeps_its_promises(
    items: list[tuple[int, int]], budget: int, max_num_seqs: int, num_workers: int, padded: bool
) -> None:
    lengths, keys = [length for length, _ in items], [key for _, key in items]
    batches = plan_batches(lengths, keys, Budget(budget, max_num_seqs, num_workers), padded=padded)
    assert sorted(index for batch in batches for index in batch) == list(range(len(items)))
    for batch in batches:
        sizes = [lengths[index] for index in batch]
        assert len({keys[index] for index in batch}) == 1
        assert len(batch) <= max_num_seqs
        assert len(batch) == 1 or (max(sizes) * len(sizes) if padded else sum(sizes)) <= budget
        assert sizes == sorted(sizes, reverse=True)


def test_packed_and_padded_rows() -> None:
    sequences = [
        ForwardItem(TokenSequence((5, 6, 7), (0, 1, 2), (0, 0, 1))),
        ForwardItem(TokenSequence((8,), (0,), (0,))),
    ]
    packed = packed_batch(sequences, torch.device("cpu"))
    assert packed.inputs["input_ids"].tolist() == [[5, 6, 7, 8]]
    assert packed.inputs["position_ids"].tolist() == [[0, 1, 2, 0]]
    assert packed.inputs["token_type_ids"].tolist() == [[0, 0, 1, 0]]
    assert packed.layout.starts.tolist() == [0, 3]
    padded = padded_batch(sequences, torch.device("cpu"), 9)
    assert padded.inputs["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert padded.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert padded.layout.starts.tolist() == [0, 3]
    assert padded.layout.lengths.tolist() == [3, 1]


def test_closing_waits_for_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(str(tiny.classifier("bert", tmp_path)), num_threads=2, max_num_batched_tokens=32)
    engine: Any = llm._open.engine
    begun, forward = threading.Event(), engine.runner.logits

    def slow(works: list[ForwardItem]) -> torch.Tensor:
        begun.set()
        time.sleep(0.02)
        return forward(works)

    monkeypatch.setattr(engine.runner, "logits", slow)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(llm.classify, [[20 + i] * 20 for i in range(20)])
        begun.wait(10)
        llm.close()
        assert len(running.result()) == 20
    with pytest.raises(ConfigError, match="closed"):
        engine.logits([TokenSequence((5,), (0,), (0,))])


def test_answers_to_identical_prompts_do_not_share_memory(llm: LLM) -> None:
    first, second = llm.encode([[20] * 5] * 2, pooling_task="embed", pooling_params=PoolingParams(use_activation=False))
    before = second.outputs.data.clone()
    first.outputs.data.numpy()[:] = 0
    assert torch.equal(second.outputs.data, before)
