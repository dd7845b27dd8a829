"""Memory: planned when a model is loaded, and what happens when it ends all the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models import tiny
from vllm_cls import LLM
from vllm_cls.runtime.batch import ForwardItem
from vllm_cls.runtime.engine import Engine
from vllm_cls.runtime.loadtime import memory_profile
from vllm_cls.runtime.machine.memory import MemoryPlan, is_exhausted, plan


def exhausted(*args: Any) -> int:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def test_a_forward_is_halved_until_it_fits_beside_the_cache() -> None:
    tried: list[int] = []

    def measure(tokens: int) -> int:
        tried.append(tokens)
        return exhausted() if tokens > 8192 else tokens * 100

    assert plan(measure, 16384, 300_000, 1_000_000) == MemoryPlan(4096, 300_000)
    assert tried == [16384, 8192, 4096]
    # A cache as large as the memory leaves half of it to the forward, and gets the rest.
    assert plan(lambda tokens: tokens * 100, 4096, 10**9, 1_000_000) == MemoryPlan(4096, 900_000 - 409_600)
    assert plan(exhausted, 1024, 10**6, 10**6) == MemoryPlan(256, 0)
    with pytest.raises(RuntimeError, match="other"):
        plan(lambda tokens: (_ for _ in ()).throw(RuntimeError("other")), 1024, 0, 10**6)  # type: ignore[arg-type]


@given(st.integers(1, 1 << 20), st.integers(0, 1 << 34), st.integers(0, 1 << 34), st.integers(0, 1 << 22))
def test_no_plan_takes_more_than_there_is(tokens: int, cache: int, free: int, a_token: int) -> None:
    made = plan(lambda count: count * a_token, tokens, cache, free)
    assert 1 <= made.max_num_batched_tokens <= max(tokens, 256)
    assert 0 <= made.prefix_cache_bytes <= cache
    if made.max_num_batched_tokens > 256:
        assert made.max_num_batched_tokens * a_token + made.prefix_cache_bytes <= free


@pytest.mark.parametrize(
    ("message", "is_it"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("std::bad_alloc", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_how_it_shows(message: str, is_it: bool) -> None:
    assert is_exhausted(RuntimeError(message)) == is_it
    assert not is_exhausted(ValueError(message))
    assert is_exhausted(torch.OutOfMemoryError("CUDA out of memory.")) and is_exhausted(MemoryError())


def test_the_batch_that_is_profiled() -> None:
    assert memory_profile.batch_lengths(16384, 512, 256) == [512] * 32
    assert memory_profile.batch_lengths(16384, 131072, 256) == [16384]
    assert memory_profile.batch_lengths(1000, 8, 16) == [8] * 16


def test_a_profile_run_measures_a_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_cls.model.loading.form_choice import dummy_items

    llm = LLM(str(tiny.classifier("roberta", tmp_path)))
    runner = llm._open.engine.runner
    peaks: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000 + peaks[-1])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100_000, 200_000))
    forward = runner.logits

    def logits(works: Sequence[ForwardItem]) -> torch.Tensor:
        peaks.append(100 * sum(map(len, works)))
        return forward(works)

    monkeypatch.setattr(runner, "logits", logits)
    made = memory_profile.plan_memory(
        runner, lambda lengths: dummy_items(runner, lengths),
        num_tokens=2048, num_sequences=256, longest=llm.max_model_len, prefix_cache_bytes=5000,
    )  # fmt: skip
    assert made == MemoryPlan(512, 5000)
    assert [peak // 100 for peak in peaks] == [2016, 1008, 480]  # sequences of 48 tokens


# -- it ends all the same ----------------------------------------------------------------------------


class Bounded:
    """A runner's step that holds so many tokens, and runs out of memory beyond."""

    def __init__(self, engine: Engine, name: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.limit = limit
        self.tried: list[int] = []
        self._step: Any = getattr(engine.runner, name)
        monkeypatch.setattr(engine.runner, name, self)

    def __call__(self, works: Sequence[ForwardItem]) -> Any:
        self.tried.append(sum(map(len, works)))
        result = self._step(works)  # keys and values are kept before it fails, as they would be
        if self.tried[-1] > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return result


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tiny.classifier("qwen2", tmp_path))


def test_half_the_batch_then_remembered(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(folder, max_num_batched_tokens=160, num_threads=1, enable_prefix_caching=False)
    given_ = [[10 + (7 * i + 5 * place) % 90 for place in range(20)] for i in range(16)]
    expected = [each.outputs.logits for each in llm.classify(given_)]
    engine = llm._open.engine
    step = Bounded(engine, "logits", 90, monkeypatch)
    outputs = llm.classify(given_)
    for output, logits in zip(outputs, expected, strict=True):
        assert output.outputs.logits == pytest.approx(logits, abs=1e-4)
    # The first batch of 160 fails; its halves run, and the second is halved before it is tried.
    assert step.tried == [160, 80, 80, 80, 80]
    assert engine.max_num_batched_tokens == 80
    step.tried.clear()
    llm.classify(given_)
    assert step.tried == [80] * 4


def test_a_prompt_that_does_not_fit_costs_itself_alone(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(folder, num_threads=1, enable_prefix_caching=False)
    Bounded(llm._open.engine, "logits", 30, monkeypatch)
    good, bad, also_good = llm.classify_iter([[20] * 5, [21] * 40, [22] * 7])
    assert good.error is None and also_good.error is None
    assert "refuses this prompt of 40 tokens: CUDA out of memory" in str(bad.error)


@pytest.mark.parametrize("name", ["keep", "logits"])
def test_kept_keys_and_values_are_those_of_the_retry(name: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = [list(range(10 + k, 44 + k)) for k in (0, 50)]
    calls = [[each + [40 + i] for each in shared for i in range(3)], [each + [50] for each in shared]]
    expected = [[each.outputs.logits for each in LLM(folder).classify(call)] for call in calls]
    llm = LLM(folder, num_threads=1)
    step = Bounded(llm._open.engine, name, 40 if name == "keep" else 4, monkeypatch)
    for call, logits in zip(calls, expected, strict=True):
        for output, other in zip(llm.classify(call), logits, strict=True):
            assert output.outputs.logits == pytest.approx(other, abs=1e-4)
    assert max(step.tried) > step.limit
    kept = list(llm._open.engine.prefix_cache._entries.values())
    assert kept
    for values in kept:
        assert len(values.layers) == 3
        assert all(key.shape[2] == values.num_tokens for key, _ in values.layers)
    assert llm.counters.num_shared_tokens > 0


def test_the_prefix_cache_makes_room_for_a_single_prompt(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(folder, num_threads=1)
    engine = llm._open.engine
    llm.classify([list(range(10, 44)) + [40 + i] for i in range(4)])
    assert engine.prefix_cache.num_bytes > 0
    step = engine.runner.logits
    tried: list[int] = []

    def while_the_cache_is_full(works: Sequence[ForwardItem]) -> torch.Tensor:
        tried.append(len(works))
        return torch.empty(exhausted()) if engine.prefix_cache.num_bytes else step(works)

    monkeypatch.setattr(engine.runner, "logits", while_the_cache_is_full)
    assert llm.classify([[7] * 9])[0].outputs.probs
    assert tried == [1, 1]
    assert engine.prefix_cache.num_bytes == 0


def test_a_failure_holds_no_activations(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a forward had computed is let go before half of the batch is tried."""
    import gc
    import weakref

    llm = LLM(folder, num_threads=1, enable_prefix_caching=False)
    runner = llm._open.engine.runner
    forward = runner.logits
    alive: list[Any] = []
    seen: list[bool] = []

    def logits(works: Sequence[ForwardItem]) -> torch.Tensor:
        seen.append(any(each() is not None for each in alive))
        activations = torch.zeros(10)
        alive.append(weakref.ref(activations))
        return forward(works) if len(works) == 1 else torch.empty(exhausted(activations))

    gc.disable()  # reference counts alone have to do
    try:
        monkeypatch.setattr(runner, "logits", logits)
        llm.classify([[20] * 5, [21] * 6])
    finally:
        gc.enable()
    assert seen == [False, False, False]
