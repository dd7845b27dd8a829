"""What a GPU runs, tried on a CPU: which kernel is chosen, what it is given, what is recorded, who waits for whom."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from tests.models import tiny
from tests.runtime import reference
from vllm_cls import LLM, ConfigError
from vllm_cls.runtime.attention import sdpa
from vllm_cls.runtime.attention.packed_attention import attend
from vllm_cls.runtime.batch import fetch, spans_of
from vllm_cls.runtime.cuda import fp8, varlen, windows
from vllm_cls.runtime.cuda.pipeline import look_ahead
from vllm_cls.runtime.layers.fusion import fuse
from vllm_cls.runtime.loadtime import cuda_graphs, equivalence
from vllm_cls.runtime.machine import device as devices
from vllm_cls.runtime.mask import PackedMask
from vllm_cls.runtime.native import attention
from vllm_cls.runtime.row import KeyValues, PackedRow, SequenceSpan

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


# -- windows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [1, 7, 40, 700, 5000])
def test_bands_are_recognised(longest: int) -> None:
    def window(function: Callable[..., Any] | None) -> windows.Window | None:
        return windows.window_of(PackedMask(function), longest)

    assert window(None) == (-1, -1)
    assert window(causal_mask_function) == (-1, 0)
    assert window(and_masks(causal_mask_function)) == (-1, 0)
    extent = 1 << max(longest - 1, 1).bit_length()
    for size in (3, 300):
        left = -1 if size >= extent else size - 1
        assert window(sliding_window_causal_mask_function(size)) == (left, 0)
        both = -1 if size >= extent - 1 else size
        assert window(sliding_window_bidirectional_mask_function(size)) == (both, both)


@pytest.mark.parametrize("longest", [40, 700, 5000])
def test_what_is_no_band_is_not_taken_for_one(longest: int) -> None:
    zero = torch.zeros(1, dtype=torch.long)

    def chunked(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (key // 8 == query // 8) & (key <= query)

    def prefix(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (key <= query) | (key < 5)

    def nothing(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return key > query

    for function in (chunked, prefix, nothing, chunked_causal_mask_function(8, zero)):
        assert windows.window_of(PackedMask(function), longest) is None


def test_a_window_is_looked_at_once_however_often_its_function_is_made() -> None:
    assert windows.window_of(PackedMask(sliding_window_causal_mask_function(11)), 60) == (10, 0)
    known = len(windows._known)
    for longest in (60, 61, 40):  # transformers makes the function anew for each forward
        windows.window_of(PackedMask(sliding_window_causal_mask_function(11)), longest)
    assert len(windows._known) == known
    windows.window_of(PackedMask(sliding_window_causal_mask_function(12)), 60)
    assert len(windows._known) == known + 1


# -- plans and kernels -------------------------------------------------------------------------------


def random_qkv(num_queries: int, num_keys: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, num_queries), (2, num_keys), (2, num_keys)]
    return tuple(torch.randn(1, *shape, 8, generator=generator) for shape in shapes)  # type: ignore[return-value]


def past_of(num_tokens: int) -> KeyValues:
    generator = torch.Generator().manual_seed(num_tokens)
    pair = [torch.randn(1, 2, num_tokens, 8, generator=generator) for _ in range(2)]
    return KeyValues(num_tokens, [(pair[0], pair[1])])


@pytest.mark.parametrize("function", [None, causal_mask_function, sliding_window_causal_mask_function(3)])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("with_pasts", [False, True])
def test_one_kernel_for_the_row_equals_each_sequence_alone(
    function: Any, softcap: float | None, with_pasts: bool
) -> None:
    shared = past_of(6)
    spans = spans_of([3, 1, 7, 2], [shared, None, past_of(4), shared] if with_pasts else None)
    qkv = random_qkv(13, 13)
    kernel = reference.Counted()
    alone = sdpa.attend(*qkv, spans, PackedMask(function), 0.3, softcap, PackedRow(spans))
    row = PackedRow(spans, kernel=kernel)
    whole = attend(*qkv, spans, PackedMask(function), 0.3, softcap, row)
    assert torch.allclose(whole, alone, atol=1e-5)
    assert kernel.ran == 1
    plan = row.plans[False]
    attend(*qkv, spans, PackedMask(function), 0.3, softcap, row)
    assert row.plans[False] is plan  # made once a row
    assert plan.cu_queries.tolist() == [0, 3, 4, 11, 13]
    assert plan.cu_keys.tolist() == ([0, 9, 10, 21, 29] if with_pasts else [0, 3, 4, 11, 13])
    assert len(plan.pasts) == 2 * with_pasts  # one that two share is copied once
    assert plan.cu_queries.dtype == torch.int32


def test_the_first_token_alone_is_left_to_sdpa_where_a_band_would_lie_wrong() -> None:
    spans = [SequenceSpan(slice(0, 1), slice(0, 3), offset=0), SequenceSpan(slice(1, 2), slice(3, 8), offset=0)]
    qkv = random_qkv(2, 8)
    for function, ran in ((sliding_window_bidirectional_mask_function(1), 0), (None, 1)):
        kernel = reference.Counted()
        whole = attend(*qkv, spans, PackedMask(function), None, None, PackedRow(spans, kernel=kernel))
        alone = sdpa.attend(*qkv, spans, PackedMask(function), None, None, PackedRow(spans))
        assert torch.allclose(whole, alone, atol=1e-6)
        assert kernel.ran == ran


def test_what_a_kernel_does_not_take_goes_to_sdpa() -> None:
    kernel = varlen.Varlen("any", lambda *args: pytest.fail("it ran"))
    spans = spans_of([3])
    half = [each.bfloat16() for each in random_qkv(3, 3)]
    odd = [each[..., :7] for each in half]
    for qkv, softcap in ((random_qkv(3, 3), None), (half, 2.0), (odd, None), ([*half[:2], odd[2]], None)):
        assert kernel.attend(*qkv, spans, PackedMask(None), None, softcap, PackedRow(spans)) is None
    chunked = PackedMask(chunked_causal_mask_function(2, torch.zeros(1, dtype=torch.long)))
    assert kernel.attend(*half, spans, chunked, None, None, PackedRow(spans)) is None
    with pytest.raises(RuntimeError, match="recorded forward"):
        attend(*half, spans, chunked, None, None, PackedRow(spans, kernel=kernel, static=True))


@pytest.mark.parametrize("function", [None, causal_mask_function, sliding_window_causal_mask_function(3)])
def test_torch_takes_what_it_is_given(function: Any) -> None:
    """The real operator on the meta device: names, types and shapes, though not a number."""
    spans = spans_of([3, 1, 7])
    query, key, value = (each.bfloat16().to("meta") for each in random_qkv(11, 11))
    plan = varlen.plan_of(spans, CPU)
    window = windows.window_of(PackedMask(function), plan.max_keys)
    kernel = varlen._torch_varlen(varlen_attn)
    plan = varlen.VarlenLayout(plan.cu_queries.to("meta"), plan.cu_keys.to("meta"), 7, 7, plan.aligned)
    output = kernel._function(*(each[0].transpose(0, 1) for each in (query, key, value)), plan, window, 0.3, None)
    assert output.shape == (11, 4, 8)
    parameters = inspect.signature(varlen_attn).parameters
    assert {"scale", "window_size", "enable_gqa", "num_splits"} <= set(parameters)


def test_flash_attn_is_called_as_it_wants() -> None:
    calls: list[dict[str, Any]] = []

    def flash(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, **kwargs: Any) -> torch.Tensor:
        calls.append(kwargs)
        return torch.zeros_like(q)

    kernel = varlen._flash_attn(flash)
    spans = spans_of([3, 1])
    qkv = [each.half() for each in random_qkv(4, 4)]
    for function, softcap in (
        (None, None),
        (causal_mask_function, 30.0),
        (sliding_window_causal_mask_function(2), None),
    ):
        kernel.attend(*qkv, spans, PackedMask(function), 0.5, softcap, PackedRow(spans))
    assert calls == [
        {"softmax_scale": 0.5, "causal": False, "window_size": (-1, -1)},
        {"softmax_scale": 0.5, "causal": True, "window_size": (-1, 0), "softcap": 30.0},
        {"softmax_scale": 0.5, "causal": True, "window_size": (1, 0)},
    ]


def test_kernels_by_device_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    assert varlen.kernels_for(CPU, torch.bfloat16) == []
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    found = {"flash_attn": SimpleNamespace(flash_attn_varlen_func=lambda: None)}
    real = varlen.importlib.import_module

    def importing(name: str) -> Any:
        if name == "flash_attn" and name not in found:
            raise ImportError(name)
        return found.get(name) or real(name)

    monkeypatch.setattr(varlen.importlib, "import_module", importing)
    assert [each.name for each in varlen.kernels_for(CUDA, torch.bfloat16)] == ["flash-attn", "torch varlen"]
    assert varlen.kernels_for(CUDA, torch.float32) == []
    found.clear()
    assert [each.name for each in varlen.kernels_for(CUDA, torch.float16)] == ["torch varlen"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert varlen.kernels_for(CUDA, torch.float16) == []


# -- whole models ------------------------------------------------------------------------------------


def prompts() -> list[list[int]]:
    shared = list(range(10, 46))
    return [shared + [51, 52, 53], [50] * 9, shared + [54] * 7, [51, 52], shared + [55], shared[:12] + [56] * 9]


@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2", "qwen2", "qwen2-window", "gemma2"])
def test_models_give_the_same_by_a_kernel_over_the_row(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tiny.classifier(name, tmp_path))
    expected = [each.outputs.logits for each in LLM(folder).classify(prompts())]
    kernel = reference.Counted()
    monkeypatch.setattr(equivalence, "kernels_for", lambda device, dtype: [kernel])
    llm = LLM(folder)
    assert llm.describe()["attention_kernel"] == "reference"
    loaded = kernel.ran
    for _ in range(2):  # the second time from the prefix cache, where the model has one
        outputs = llm.classify(prompts())
        for output, logits in zip(outputs, expected, strict=True):
            assert output.outputs.logits == pytest.approx(logits, abs=1e-4)
    assert kernel.ran > loaded
    causal = name not in ("bert", "modernbert")
    assert (llm.counters.num_shared_tokens > 0) == causal
    assert llm.counters.num_pruned_tokens > 0
    assert kernel.refused == 0


@pytest.mark.parametrize("kind", ["fails", "differs"])
def test_a_kernel_that_is_wrong_is_not_used(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any) -> torch.Tensor:
        if kind == "fails":
            raise RuntimeError("no kernel image is available")
        return reference.varlen(*args) * 1.1

    broken = varlen.Varlen("broken", wrong, softcaps=True, dtypes=[torch.float32])
    folder = str(tiny.classifier("qwen2", tmp_path))
    monkeypatch.setattr(equivalence, "kernels_for", lambda device, dtype: [broken, reference.Counted()])
    assert LLM(folder).describe()["attention_kernel"] == "reference"
    monkeypatch.setattr(equivalence, "kernels_for", lambda device, dtype: [broken])
    described = LLM(folder).describe()
    without = "sdpa, sequence by sequence" if attention.compiled() is None else attention.name
    assert (described["execution"], described["attention_kernel"]) == ("packed", without)


# -- recorded forwards -------------------------------------------------------------------------------


def text(length: int) -> list[int]:
    """Tokens that differ: with one token over and over, every key has the same value, and lengths would not show."""
    return [10 + (7 * length + 5 * place) % 90 for place in range(length)]


def test_buckets_leave_room_for_padding() -> None:
    for tokens in range(1, 300):
        for sequences in range(1, min(tokens, 40) + 1):
            bucket = cuda_graphs.bucket_of(tokens, sequences, 512, 64)
            assert bucket is not None
            assert bucket[1] > sequences and bucket[0] >= tokens + bucket[1] - sequences
    assert cuda_graphs.bucket_of(512, 1, 512, 64) is None
    assert cuda_graphs.bucket_of(100, 64, 512, 64) is None


def replayed(forward: cuda_graphs.Replay) -> cuda_graphs.Replay:
    """Stands in for a CUDA graph: runs the same code again, on what the static tensors hold by then."""
    forward()
    return forward


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "qwen2", "qwen2-window"])
def test_recorded_forwards_give_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "kernels_for", lambda device, dtype: [reference.Counted()])
    llm = LLM(str(tiny.classifier(name, tmp_path)), enable_prefix_caching=False)
    runner = llm._open.engine.runner
    batches = [list(map(text, lengths)) for lengths in ([5, 9, 1], [8, 3, 4], [12, 2, 6], [3])]
    expected = [[each.outputs.logits for each in llm.classify(batch)] for batch in batches]
    runner.graphs = cuda_graphs.Graphs(runner, replayed)
    for round_ in range(2):
        for batch, logits in zip(batches, expected, strict=True):
            for output, other in zip(llm.classify(batch), logits, strict=True):
                assert output.outputs.logits == pytest.approx(other, abs=1e-4)
        assert runner.graphs.why_not is None
        assert runner.graphs.num_graphs == round_ + 1  # the single prompt is of a bucket of its own
    before = llm.counters
    llm.classify(batches[0])
    done = llm.counters - before
    assert (done.num_forwards, done.num_tokens) == (1, 32)
    assert done.num_pruned_tokens == 32 - 4


def test_a_recording_that_holds_on_to_its_batch_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a graph would be into which the host wrote the lengths of the batch that was recorded."""
    monkeypatch.setattr(equivalence, "kernels_for", lambda device, dtype: [reference.Counted()])
    llm = LLM(str(tiny.classifier("qwen2", tmp_path)), enable_prefix_caching=False)
    runner = llm._open.engine.runner
    batch = [text(5), text(9), text(3)]
    expected = [each.outputs.logits for each in llm.classify(batch)]

    def frozen(forward: cuda_graphs.Replay) -> cuda_graphs.Replay:
        output = forward()
        return lambda: output

    runner.graphs = cuda_graphs.Graphs(runner, frozen)
    for _ in range(3):
        for output, other in zip(llm.classify(batch), expected, strict=True):
            assert output.outputs.logits == pytest.approx(other, abs=1e-5)
    assert "differ by" in str(runner.graphs.why_not)
    assert runner.graphs.num_graphs == 0


def test_graphs_are_bounded_and_only_for_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "kernels_for", lambda device, dtype: [reference.Counted()])
    llm = LLM(str(tiny.classifier("bert", tmp_path)))
    runner = llm._open.engine.runner
    assert cuda_graphs.Graphs.on_cuda(runner) is None  # no GPU
    runner.graphs = cuda_graphs.Graphs(runner, replayed, max_tokens=64, max_graphs=1)
    for _ in range(3):
        for batch in ([[20] * 5], [[20] * 5, [21] * 4], [[20 + i] * 20 for i in range(5)]):
            llm.classify(batch)
    assert runner.graphs.num_graphs == 1


# -- look-ahead --------------------------------------------------------------------------------------


def test_batches_are_submitted_ahead_and_answered_in_order() -> None:
    events: list[str] = []

    def begin(item: int) -> Callable[[], int]:
        events.append(f"begin {item}")

        def finish() -> int:
            events.append(f"finish {item}")
            return item * 10

        return finish

    assert look_ahead(begin, [0, 1, 2, 3], depth=2) == [0, 10, 20, 30]
    assert events == [
        "begin 0", "begin 1", "finish 0", "begin 2", "finish 1", "begin 3", "finish 2", "finish 3",
    ]  # fmt: skip
    assert look_ahead(begin, [], depth=2) == []


def test_fetched_rows() -> None:
    rows = torch.arange(6.0).view(3, 2)
    assert torch.equal(torch.stack(fetch(rows)()), rows)
    parts = [rows[:2], rows[2:]]
    assert all(map(torch.equal, fetch(parts)(), parts))
    assert fetch([])() == []


def test_the_engine_answers_in_order_when_it_looks_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(str(tiny.classifier("qwen2", tmp_path)), max_num_batched_tokens=32)
    given = [[20 + i] * (3 + i) for i in range(12)]
    expected = [each.outputs.logits for each in llm.classify(given)]
    engine = llm._open.engine
    engine._looks_ahead = True
    llm.reset_prefix_cache()
    assert [each.outputs.logits for each in llm.classify(given)] == expected
    # Batches behind one that runs out of memory are under way by then, and are answered all the same.
    forward, sizes = engine.runner.logits, []

    def short_of_memory(works: list[Any]) -> torch.Tensor:
        sizes.append(sum(map(len, works)))
        if sizes[-1] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(works)

    monkeypatch.setattr(engine.runner, "logits", short_of_memory)
    llm.reset_prefix_cache()
    for output, logits in zip(llm.classify(given), expected, strict=True):
        assert output.outputs.logits == pytest.approx(logits, abs=1e-4)
    assert sum(size > 20 for size in sizes) == 2  # two were under way; the others are halved before they run


# -- numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "dtype"), [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16), ((6, 1), torch.float32)]
)  # fmt: skip
def test_dtype_by_what_the_card_computes(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.choose_dtype("auto", CUDA) == dtype
    assert devices.choose_dtype("float32", CUDA) == torch.float32


def test_fp8_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="8.9 or more; this runs on cpu"):
        fp8.check_fp8(CPU, torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(ConfigError, match="cuda:0 has 8.6"):
        fp8.check_fp8(CUDA, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    with pytest.raises(ConfigError, match="bfloat16 weights; leave out dtype='float16'"):
        fp8.check_fp8(CUDA, torch.float16)

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(fp8.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'vllm-cls\[fp8\]'"):
        fp8.check_fp8(CUDA, torch.bfloat16)


def test_fp8_takes_the_wide_layers_and_a_scale_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Torchao:
        class PerRow: ...

        @staticmethod
        def Float8DynamicActivationFloat8WeightConfig(granularity: Any) -> Any:
            return granularity

        @staticmethod
        def quantize_(model: Any, config: Any, filter_fn: Any) -> None:
            asked["config"] = config
            asked["names"] = [name for name, module in model.named_modules() if filter_fn(module, name)]

    monkeypatch.setattr(fp8.importlib, "import_module", lambda name: Torchao)
    model = torch.nn.ModuleDict(
        {
            "wide": torch.nn.Linear(32, 16),
            "odd": torch.nn.Linear(32, 3),
            "pooler": torch.nn.ModuleDict({"dense": torch.nn.Linear(32, 32)}),
            "norm": torch.nn.LayerNorm(32),
            "attention": torch.nn.ModuleDict({name: torch.nn.Linear(32, 32) for name in ("q", "k", "v")}),
        }
    )
    for name in ("q", "k", "v"):
        setattr(model["attention"], f"{name}_proj", model["attention"].pop(name))
    assert fuse(model) == 3
    assert fp8.apply_fp8(model) == 4
    assert asked["names"] == ["wide", "attention.q_proj", "attention.k_proj", "attention.v_proj"]
    assert not any("forward" in vars(module) for module in model.modules())  # none runs by a joined weight
    with pytest.raises(ConfigError, match="no linear layers"):
        fp8.apply_fp8(torch.nn.LayerNorm(3))
    assert isinstance(asked["config"], Torchao.PerRow)
