"""On a GPU: every kernel, dtype and shortcut against the CPU. Skipped where there is no CUDA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.masking_utils import (
    causal_mask_function,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from tests.models import tiny
from vllm_cls import LLM
from vllm_cls.calls import tasks
from vllm_cls.runtime.attention import sdpa
from vllm_cls.runtime.batch import ForwardItem, spans_of
from vllm_cls.runtime.cuda import fp8, varlen
from vllm_cls.runtime.loadtime import equivalence
from vllm_cls.runtime.mask import PackedMask
from vllm_cls.runtime.row import KeyValues, PackedRow, SequenceSpan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
HALVES = [torch.bfloat16, torch.float16]
# Heads of 8 numbers and more, which kernels take; the tiny models' own heads have 8.
MODELS = ["bert", "modernbert", "gpt2", "qwen2", "qwen2-window", "gemma2", "llama"]


def device() -> torch.device:
    return torch.device("cuda", 0)


def text(length: int, seed: int = 0) -> list[int]:
    return [10 + (7 * length + 13 * seed + 5 * place) % 90 for place in range(length)]


def prompts() -> list[list[int]]:
    shared = list(range(10, 46))
    return [shared + [51, 52, 53], text(9), shared + [54] * 7, text(2), shared + [55], shared[:12] + text(9), text(30)]


def probs(llm: LLM, given: Sequence[list[int]]) -> torch.Tensor:
    return torch.tensor([each.outputs.probs for each in llm.classify(list(given))])


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within it, an operation that makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# -- kernels -----------------------------------------------------------------------------------------


def names() -> list[str]:
    return [each.name for each in varlen.kernels_for(device(), torch.bfloat16)] if torch.cuda.is_available() else []


@pytest.mark.parametrize("name", names() or ["none"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("head_dim", [8, 64, 128, 256])
@pytest.mark.parametrize("kind", ["causal", "full", "window", "two-sided"])
@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("form", ["rows", "pasts", "last"])
def test_a_kernel_equals_each_sequence_alone(
    name: str, dtype: torch.dtype, head_dim: int, kind: str, softcap: float | None, form: str
) -> None:
    kernel = next((each for each in varlen.kernels_for(device(), dtype) if each.name == name), None)
    if kernel is None or (softcap is not None and not kernel.softcaps):
        pytest.skip("no such kernel here")
    function = {
        "causal": causal_mask_function,
        "full": None,
        "window": sliding_window_causal_mask_function(6),
        "two-sided": sliding_window_bidirectional_mask_function(4),
    }[kind]
    generator = torch.Generator(device()).manual_seed(0)

    def random(heads: int, count: int) -> torch.Tensor:
        return torch.randn(1, heads, count, head_dim, generator=generator, device=device()).to(dtype)

    lengths = [3, 1, 150, 17, 33]
    spans: list[SequenceSpan] = spans_of(lengths)
    if form == "pasts":
        past = KeyValues(40, [(random(2, 40), random(2, 40))])
        spans = spans_of(lengths, [past, None, past, KeyValues(7, [(random(2, 7), random(2, 7))]), None])
    if form == "last":
        spans = [SequenceSpan(slice(i, i + 1), each.keys, each.num_keys - 1) for i, each in enumerate(spans)]
    query, key, value = random(4, spans[-1].queries.stop), random(2, sum(lengths)), random(2, sum(lengths))
    whole = kernel.attend(query, key, value, spans, PackedMask(function), None, softcap, PackedRow(spans))
    assert whole is not None
    wide = [each.float() for each in (query, key, value)]
    for each in spans:
        if each.past is not None and each.past.layers[0][0].dtype != torch.float32:
            each.past.layers[0] = tuple(pair.float() for pair in each.past.layers[0])  # type: ignore[assignment]
    alone = sdpa.attend(*wide, spans, PackedMask(function), None, softcap, PackedRow(spans))
    assert torch.allclose(whole.float(), alone, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_models_give_what_they_give_on_a_cpu(name: str, dtype: str, tmp_path: Path) -> None:
    folder = str(tiny.classifier(name, tmp_path))
    expected = probs(LLM(folder, device="cpu", dtype="float32"), prompts())
    llm = LLM(folder, device="cuda", dtype=dtype)
    described = llm.describe()
    assert described["execution"] == "packed"
    assert described["attention_kernel"] in (*names(), "sdpa, sequence by sequence")
    if dtype != "float32" and name in ("bert", "gpt2", "qwen2", "llama") and names():
        assert described["attention_kernel"] in names()
    tolerance = 1e-4 if dtype == "float32" else 5e-2
    for _ in range(2):  # the second time from the prefix cache
        assert torch.allclose(probs(llm, prompts()), expected, atol=tolerance)
    assert llm.counters.num_pruned_tokens > 0
    if name not in ("bert", "modernbert"):
        assert llm.counters.num_shared_tokens > 0


@pytest.mark.parametrize("name", MODELS)
def test_a_kernel_and_sdpa_agree(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tiny.classifier(name, tmp_path))
    by_kernel = probs(LLM(folder, device="cuda"), prompts())
    monkeypatch.setattr(equivalence, "kernels_for", lambda device, dtype: [])
    llm = LLM(folder, device="cuda")
    assert llm.describe()["attention_kernel"] == "sdpa, sequence by sequence"
    assert torch.allclose(probs(llm, prompts()), by_kernel, atol=3e-2)


def test_the_choice_of_kernel_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    llm = LLM(str(tiny.classifier("qwen2", tmp_path)), device="cuda", enable_prefix_caching=False)
    alone = torch.cat([probs(llm, [each]) for each in prompts()])
    assert torch.allclose(probs(llm, prompts()), alone, atol=2e-2)


# -- no waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen2", "qwen2-window"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_forward_never_waits_for_the_device(name: str, dtype: str, tmp_path: Path) -> None:
    llm = LLM(str(tiny.classifier(name, tmp_path)), device="cuda", dtype=dtype)
    engine = llm._open.engine
    sequences = [each.sequence for each in tasks.classify(llm._open, prompts()).tokenize()]
    works = [ForwardItem(each) for each in sequences]
    engine.runner.logits(works)  # libraries are opened the first time
    torch.cuda.synchronize()
    with no_waiting():
        engine.runner.logits(works)
    if engine.runner.shares:
        past = KeyValues(12)
        engine.runner.keep([ForwardItem(selfcheck_begun(sequences[0], 12), keep=past)])
        torch.cuda.synchronize()
        with no_waiting():
            engine.runner.logits([ForwardItem(sequences[0], past), ForwardItem(sequences[1])])


def selfcheck_begun(sequence: Any, length: int) -> Any:
    from vllm_cls.runtime.schedule import begun

    return begun(sequence, length)


# -- recorded forwards -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen2"])
def test_cuda_graphs_give_the_same(name: str, tmp_path: Path) -> None:
    folder = str(tiny.classifier(name, tmp_path))
    eager = LLM(folder, device="cuda")
    llm = LLM(folder, device="cuda", cuda_graphs=True, enable_prefix_caching=False)
    recorded = llm._open.engine.runner.graphs
    if recorded is None:
        pytest.skip("no kernel that can be recorded here")
    batches = [[text(length, seed) for length in (5, 9, 1 + seed)] for seed in range(6)]
    for batch in [*batches, *batches]:
        assert torch.allclose(probs(llm, batch), probs(eager, batch), atol=2e-2)
    assert recorded.why_not is None and recorded.num_graphs > 0


def test_enforce_eager_records_nothing(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="enforce_eager"):
        llm = LLM(str(tiny.classifier("bert", tmp_path)), device="cuda", cuda_graphs=True, enforce_eager=True)
    assert not llm.describe()["cuda_graphs"]


# -- memory ------------------------------------------------------------------------------------------


def test_memory_is_planned_and_an_end_of_it_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tiny.classifier("qwen2", tmp_path))
    given = [text(20 + seed % 20, seed) for seed in range(300)]
    llm = LLM(folder, device="cuda", max_num_batched_tokens=8192, enable_prefix_caching=False)
    expected = probs(llm, given)
    engine = llm._open.engine
    forward = engine.runner.logits

    def short_of_memory(works: Sequence[ForwardItem]) -> torch.Tensor:
        rows = forward(works)
        if sum(map(len, works)) > 1000:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")  # a real failure of the allocator
        return rows

    monkeypatch.setattr(engine.runner, "logits", short_of_memory)
    assert torch.allclose(probs(llm, given), expected, atol=2e-2)
    assert engine.max_num_batched_tokens <= 4096
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 20, 1 << 30))
    assert LLM(folder, device="cuda", max_num_batched_tokens=1 << 16).describe()["max_num_batched_tokens"] < 1 << 16


def test_weights_go_straight_to_the_device(tmp_path: Path) -> None:
    llm = LLM(str(tiny.classifier("qwen2", tmp_path)), device="cuda")
    assert {each.device.type for each in llm.model.parameters()} == {"cuda"}
    assert {each.device.type for each in llm.model.buffers()} == {"cuda"}


# -- FP8 ---------------------------------------------------------------------------------------------


def test_fp8_stays_near_and_does_not_depend_on_the_batch() -> None:
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the device has no FP8")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 32)).cuda().bfloat16()
    rows = torch.randn(1, 40, 64, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = model(rows)
        assert fp8.apply_fp8(model) == 2
        together = model(rows)
        assert torch.allclose(together, expected, atol=0.1, rtol=0.1)
        louder = torch.cat([rows[:, :5], rows[:, 5:] * 100], dim=1)
        assert torch.allclose(model(louder)[:, :5], together[:, :5], atol=1e-2)
