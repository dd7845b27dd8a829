"""Attention in C equals torch's own, for whatever sequences share a row."""

from __future__ import annotations

import itertools
import os
import platform
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from tests.models import tiny
from vllm_cls import LLM
from vllm_cls.runtime.attention import sdpa
from vllm_cls.runtime.batch import pooled_spans, spans_of
from vllm_cls.runtime.mask import PackedMask
from vllm_cls.runtime.native import attention, compiler
from vllm_cls.runtime.row import KeyValues, PackedRow, SequenceSpan

pytestmark = pytest.mark.skipif(attention.compiled() is None, reason="there is no C compiler")

CAUSAL, ALL = PackedMask(causal_mask_function), PackedMask(None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def tensors(
    num_tokens: int, heads: int, kv_heads: int, d: int, dv: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of one product, as joined projections give them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [heads * d, kv_heads * d, kv_heads * dv]
    parts = torch.randn(1, num_tokens, sum(sizes), generator=generator).split(sizes, dim=-1)
    q, k, v = (
        part.view(1, num_tokens, -1, width).transpose(1, 2) for part, width in zip(parts, (d, d, dv), strict=True)
    )
    return q, k, v


def both(
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    spans: list[SequenceSpan],
    mask: PackedMask,
    scaling: float | None = None,
    layer: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What C gives, and what torch does."""
    row = PackedRow(spans, layer=layer)
    ours = attention.attend(*qkv, spans, mask, scaling, None, row)
    assert ours is not None
    return ours, sdpa.attend(*qkv, spans, mask, scaling, None, row)


@pytest.mark.parametrize("mask", [CAUSAL, ALL], ids=["causal", "all"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize(("d", "dv"), [(16, 16), (32, 32), (64, 64), (80, 80), (24, 48), (5, 3), (8, 8), (40, 40)])
def test_it_is_what_torch_gives(mask: PackedMask, heads: int, kv_heads: int, d: int, dv: int) -> None:
    lengths = [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100, 3, 257]
    qkv = tensors(sum(lengths), heads, kv_heads, d, dv)
    for scaling in (None, 0.3):
        ours, torchs = both(qkv, spans_of(lengths), mask, scaling)
        assert ours.shape == torchs.shape
        assert torch.allclose(ours, torchs, atol=2e-6, rtol=1e-5)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="for other processors")
@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3"])
def test_for_older_processors(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_FLAGS", (*attention._FLAGS, f"-march={level}"))
    older = attention._compiled.__wrapped__()
    assert older is not None
    monkeypatch.setattr(attention, "compiled", lambda: older)
    lengths = [1, 7, 8, 9, 17, 40]
    for dv in (8, 20, 32):
        for mask in (CAUSAL, ALL):
            ours, torchs = both(tensors(sum(lengths), 4, 2, 16, dv), spans_of(lengths), mask)
            assert torch.allclose(ours, torchs, atol=2e-6, rtol=1e-5)


def pasts(lengths: list[int], kv_heads: int, d: int, dv: int) -> list[KeyValues | None]:
    made: list[KeyValues | None] = []
    for seed, length in enumerate(lengths):
        _, k, v = tensors(max(length, 1), 1, kv_heads, d, dv, seed=100 + seed)
        made.append(KeyValues(length, [(k.contiguous(), v.contiguous())]) if length else None)
    return made


def test_what_was_computed_before_may_be_the_beginning_of_more() -> None:
    """As the prefix cache cuts it: a view."""
    longer = pasts([40, 17], 2, 32, 32)
    cut = [KeyValues(9, [(k[:, :, :9], v[:, :, :9]) for k, v in each.layers]) for each in longer if each is not None]
    ours, torchs = both(tensors(8, 4, 2, 32, 32), spans_of([5, 3], cut), CAUSAL)
    assert torch.allclose(ours, torchs, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dv", [48, 8, 20])
def test_what_was_computed_before_comes_first(dv: int) -> None:
    befores, lengths = [0, 1, 15, 16, 17, 256, 33], [5, 1, 17, 20, 1, 40, 16]
    spans = spans_of(lengths, pasts(befores, 2, 32, dv))
    ours, torchs = both(tensors(sum(lengths), 4, 2, 32, dv), spans, CAUSAL)
    assert torch.allclose(ours, torchs, atol=2e-6, rtol=1e-5)


def test_a_row_is_described_once_and_read_by_every_layer() -> None:
    """What comes before lies elsewhere in each layer; two sequences here go on from the same."""
    first, other = pasts([9, 17], 2, 32, 32)
    for past, factor in ((first, 2), (other, 3)):
        assert past is not None
        past.layers += [(factor * k[:, :, :], v - factor) for k, v in past.layers]
    spans = spans_of([5, 3, 1, 4], [first, other, None, first])
    row = PackedRow(spans)
    for layer in (0, 1, 0):
        row.layer = layer
        qkv = tensors(13, 4, 2, 32, 32, seed=layer)
        for mask in (CAUSAL, ALL):
            ours = attention.attend(*qkv, spans, mask, None, None, row)
            _, torchs = both(qkv, spans, mask, layer=layer)
            assert ours is not None and torch.allclose(ours, torchs, atol=2e-6, rtol=1e-5)
    assert len(row.described) == 2


@pytest.mark.parametrize("mask", [CAUSAL, ALL], ids=["causal", "all"])
def test_pooled_positions_alone(mask: PackedMask) -> None:
    """A query of each sequence: its last, its first, or one between, which sees what precedes it."""
    lengths, places = [7, 20, 33], [6, 0 + 7, 15 + 27]
    q, k, v = tensors(sum(lengths), 4, 4, 32, 32)
    spans = pooled_spans(spans_of(lengths), places)
    whole, _ = both((q, k, v), spans_of(lengths), mask)
    ours, torchs = both((q[:, :, places], k, v), spans, mask)
    assert torch.allclose(ours, torchs, atol=2e-6, rtol=1e-5)
    assert torch.allclose(ours, whole[:, places], atol=2e-6, rtol=1e-5)


def test_a_window_that_holds_all_and_one_that_does_not() -> None:
    lengths = [5, 12]
    qkv = tensors(17, 2, 2, 16, 16)
    wide = PackedMask(sliding_window_causal_mask_function(64))
    ours, torchs = both(qkv, spans_of(lengths), wide)
    assert torch.allclose(ours, torchs, atol=2e-6, rtol=1e-5)
    narrow = PackedMask(sliding_window_causal_mask_function(8))
    assert attention.attend(*qkv, spans_of(lengths), narrow, None, None, PackedRow(spans_of(lengths))) is None


def test_large_and_small_scores() -> None:
    q, k, v = tensors(40, 2, 2, 32, 32)
    for factor in (1e-6, 30.0, 1e4):
        ours, torchs = both((q * factor, k, v), spans_of([40]), ALL)
        assert torch.allclose(ours, torchs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_stay_so_and_in_their_sequence(bad: float) -> None:
    lengths = [9, 20, 18]
    for which in range(3):
        qkv = [each.clone() for each in tensors(47, 2, 2, 32, 32)]
        qkv[which][:, :, 12] = bad
        ours, torchs = both((qkv[0], qkv[1], qkv[2]), spans_of(lengths), ALL)
        assert torch.equal(ours.isfinite(), torchs.isfinite())
        assert bool(ours[:, :9].isfinite().all() and ours[:, 29:].isfinite().all())
        assert not bool(ours[:, 9:29].isfinite().all())


def test_scores_that_are_all_minus_infinity_give_no_number() -> None:
    """As a softmax says; torch's kernel takes such keys for masked ones and gives zeros."""
    q, k, v = tensors(41, 2, 2, 32, 32)
    spans = spans_of([1, 40])
    ours = attention.attend(q.fill_(1e30), k.fill_(-1e30), v, spans, ALL, None, None, PackedRow(spans))
    assert ours is not None and bool(ours.isnan().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_default_dtype(dtype: torch.dtype) -> None:
    """As transformers sets it, for all threads, while it loads another model."""
    qkv, before = tensors(40, 2, 2, 32, 32), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        ours, torchs = both(qkv, spans_of([40]), ALL)
    finally:
        torch.set_default_dtype(before)
    assert ours.dtype == torchs.dtype == torch.float32
    assert torch.allclose(ours, torchs, atol=2e-6, rtol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_that_is_forked_while_it_compiles() -> None:
    held = threading.Event()

    def compile_() -> None:
        with attention._lock:
            held.set()
            threading.Event().wait(0.2)

    thread = threading.Thread(target=compile_)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if attention._lock.acquire(timeout=5) else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()


def test_what_it_leaves_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(**changed: Any) -> torch.Tensor | None:
        q, k, v = (changed.get(name, each) for name, each in zip("qkv", tensors(10, 2, 2, 16, 16), strict=True))
        return attention.attend(q, k, v, spans_of([10]), ALL, None, None, PackedRow(spans_of([10])))

    assert given() is not None
    q, k, v = tensors(10, 2, 2, 16, 16)
    assert given(q=q.double()) is None and given(v=v.bfloat16()) is None
    assert given(k=k.transpose(2, 3).contiguous().transpose(2, 3)) is None
    assert given(q=q[:, :, :9]) is None and given(k=k[:, :, :9], v=v[:, :, :9]) is None
    assert given(v=v[:, :1]) is None and given(k=k[..., :8]) is None and given(q=q[:, :1]) is None
    monkeypatch.setattr(attention, "_MOST_KEYS", 9)
    assert given() is None
    monkeypatch.undo()
    torch.set_num_threads(4)
    assert given() is None
    torch.set_num_threads(1)
    with torch.inference_mode(False):
        assert given() is None


def test_no_memory_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def attend(self, *args: Any) -> int:
            return 1

    monkeypatch.setattr(attention, "compiled", Full)
    with pytest.raises(MemoryError):
        attention.attend(*tensors(4, 1, 1, 16, 16), spans_of([4]), ALL, None, None, PackedRow(spans_of([4])))


def test_a_library_that_is_wrong_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as a compiler would make that multiplies wrongly; here the exponential's last digits are others."""
    source = Path(compiler.__file__).with_name("attention.c").read_text()
    monkeypatch.setattr(compiler.Path, "with_name", lambda self, name: changed)
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder) / "attention.c"
        changed.write_text(source.replace("1.6666665459e-1f", "1.7e-1f"))
        with caplog.at_level("INFO", logger="vllm_cls"):
            assert attention._compiled.__wrapped__() is None
    assert "other numbers than torch" in caplog.text


def test_a_model_says_what_runs_its_attention(tmp_path: Path) -> None:
    """Soft caps are left to torch; a check with more threads than C takes does not hide what the workers do."""
    by_torch, by_c = "sdpa, sequence by sequence", "C, all sequences at once"
    for name, threads, options, expected in (
        ("gemma2", 1, {}, by_torch),
        ("bert", 1, {}, by_c),
        ("bert", 8, {}, by_c),
        ("bert", 1, {"dtype": "bfloat16"}, by_torch),
        ("deberta-v2", 1, {}, None),
    ):
        torch.set_num_threads(threads)
        folder = tiny.classifier(name, tmp_path / f"{name}-{threads}-{len(options)}")
        with LLM(str(folder), device="cpu", **options) as llm:
            assert llm.describe()["attention_kernel"] == expected, name


def test_without_a_compiler_the_model_runs_all_the_same(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.classifier("qwen2", tmp_path, hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    texts = ["good", "The film was good and the music was great.", "a terrible plot, bad acting and a boring end"]
    calls = itertools.count()
    plain = attention.attend

    def counted(*args: Any) -> torch.Tensor | None:
        next(calls)
        found = plain(*args)
        assert found is not None
        return found

    monkeypatch.setattr(attention, "attend", counted)
    with LLM(str(folder), device="cpu", num_threads=1) as llm:
        ours = torch.tensor([each.outputs.logits for each in llm.classify(texts)])
        assert llm.describe()["attention_kernel"] == "C, all sequences at once"
    assert next(calls) > 4
    monkeypatch.setattr(attention, "attend", plain)
    attention._compiled.cache_clear()
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    try:
        with LLM(str(folder), device="cpu", num_threads=1) as llm:
            torchs = torch.tensor([each.outputs.logits for each in llm.classify(texts)])
            assert attention.compiled() is None
            assert llm.describe()["attention_kernel"] == "sdpa, sequence by sequence"
    finally:
        attention._compiled.cache_clear()
    assert torch.allclose(ours, torchs, atol=1e-5)
