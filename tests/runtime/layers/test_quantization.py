"""int8: exact integer products, tokens that do not see each other, the same numbers in C and in torch."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model
from transformers.pytorch_utils import Conv1D

from tests.models import tiny
from vllm_cls import LLM
from vllm_cls.errors import ConfigError
from vllm_cls.runtime.context import running
from vllm_cls.runtime.layers import quantization
from vllm_cls.runtime.layers.quantization import Int8Linear, products, quantize_int8, watch_inputs
from vllm_cls.runtime.native import compiler, int8_product
from vllm_cls.runtime.native import int8 as int8_kernels
from vllm_cls.runtime.native.int8 import rotated, rotated_block
from vllm_cls.runtime.native.int8_product import takes


def reference(layer: Int8Linear, x: torch.Tensor, integers: torch.Tensor, weight_scale: torch.Tensor) -> torch.Tensor:
    """What `layer` should give, in float64, where sums of integers are exact."""
    q, scale, offset = int8_kernels.EagerKernels().quantize(x, layer._factor, layer._block)
    product = (q.double() - 128 - offset.double()) @ integers.double().t()
    return product * scale.double() * weight_scale.double() + layer._exact[1].double()


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 600])
@pytest.mark.parametrize("shape", [(64, 64), (384, 1152), (99, 33), (1536, 384)])
@pytest.mark.parametrize("kind", ["normal", "positive", "outlier", "extreme"])
def test_the_product_is_exact(rows: int, shape: tuple[int, int], kind: str) -> None:
    x, weight, bias = torch.randn(rows, shape[0]), torch.randn(shape[1], shape[0]), torch.randn(shape[1])
    if kind == "positive":
        x = x.abs() + 3
    elif kind == "outlier":
        x[:, 5] *= 1000
    elif kind == "extreme":  # every integer at an end of its range: what saturates where anything does
        x, weight = torch.sign(x) + 1, weight.sign()
    layer = Int8Linear(weight, bias)
    turned = rotated(weight * layer._factor.reciprocal(), layer._block) / layer._block
    integers, weight_scale = quantization._round(turned, quantization.pair_limit())
    expected = reference(layer, x, integers, weight_scale)
    assert torch.allclose(layer(x).double(), expected, rtol=1e-5, atol=float(expected.abs().max()) * 1e-5)


@pytest.mark.skipif(not takes(4), reason="there are no integer products in C here")
@pytest.mark.parametrize("threads", [1, 3])
def test_both_products_are_equal(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_product, "WORTH_A_THREAD", 1)
    before, limit = torch.get_num_threads(), quantization.pair_limit()
    torch.set_num_threads(threads)
    for rows, inputs, outputs in ((0, 4, 1), (1, 64, 33), (7, 1600, 49), (8, 36, 96), (300, 260, 100)):
        integers, _ = quantization._round(torch.randn(outputs, inputs), limit)
        weight_scale, sums, bias = torch.rand(outputs), torch.randn(outputs), torch.randn(outputs)
        q, scale = torch.randint(256, (rows, inputs), dtype=torch.uint8), torch.rand(rows, 1)
        offset = torch.randint(-128, 128, (rows, 1)).float()
        for gelu in (False, True):
            in_c, one_dnn = (
                make(integers, weight_scale, sums, bias, gelu)(q, scale, offset) for make in products().values()
            )
            torch.testing.assert_close(in_c, one_dnn, atol=1.5e-6 if gelu else 0, rtol=1e-6 if gelu else 0)
    torch.set_num_threads(before)


def test_it_is_close_to_float32() -> None:
    x, weight, bias = torch.randn(50, 384) * torch.rand(50, 1) * 9, torch.randn(96, 384), torch.randn(96)
    expected = nn.functional.linear(x, weight, bias)
    error = (Int8Linear(weight, bias)(x) - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(error.max()) < 0.03


def test_watched_inputs_make_it_closer() -> None:
    x, weight = torch.randn(200, 384), torch.randn(96, 384)
    x[:, 7] *= 60
    expected = nn.functional.linear(x, weight)
    errors = [float((Int8Linear(weight, None, most)(x) - expected).norm()) for most in (None, x.abs().amax(0))]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("limit", [128, 254])
def test_pairs_keep_within_their_limit(limit: int) -> None:
    weight = torch.cat([torch.randn(40, 101), torch.ones(1, 101), -torch.ones(1, 101), torch.zeros(1, 101)])
    integers, scale = quantization._round(weight, limit)
    assert int(integers.long().abs().max()) <= 127 and bool((scale > 0).all())
    pairs = nn.functional.pad(integers.long(), (0, 1)).view(len(weight), -1, 2)
    for sign in (1, -1):
        assert int((pairs * sign).clamp_min(0).sum(2).max()) <= limit
    error = (integers * scale[:, None] - weight).norm() / weight.norm()
    assert float(error) < 0.02


def test_halved_weights_are_worse_than_cut_pairs() -> None:
    weight = torch.randn(64, 384)
    integers, scale = quantization._round(weight, 128)
    half = weight.abs().amax(1, keepdim=True) / 64
    cut_error = (integers * scale[:, None] - weight).norm()
    assert float(cut_error) < 0.75 * float(((weight / half).round() * half - weight).norm())


def test_a_processor_without_exact_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    quantization.pair_limit.cache_clear()
    monkeypatch.setattr(quantization, "_exact", lambda *args: False)
    with pytest.raises(ConfigError, match="not exact"):
        quantization.pair_limit()
    quantization.pair_limit.cache_clear()


def test_a_token_does_not_see_its_batch() -> None:
    layer = Int8Linear(torch.randn(160, 96), torch.randn(160), torch.rand(96))
    x = torch.randn(700, 96) * torch.logspace(-6, 6, 700)[:, None]
    together = layer(x)
    assert torch.equal(torch.cat([layer(row[None]) for row in x]), together)
    for size in (2, 3, 17, 129, 512):
        assert torch.equal(torch.cat([layer(part) for part in x.split(size)]), together)
    order = torch.randperm(700)
    assert torch.equal(layer(x[order]), together[order])
    assert torch.equal(layer(x.view(7, 100, 96)).view(700, 160), together)


def test_nan_and_infinity_stay_in_their_token() -> None:
    layer, x = Int8Linear(torch.randn(64, 64), None), torch.randn(4, 64)
    expected = layer(x)
    x[1, 3], x[2, 5] = torch.nan, -torch.inf
    y = layer(x)
    assert bool(y[1:3].isnan().all())
    assert torch.equal(y[[0, 3]], expected[[0, 3]])


def test_zeros_and_tiny_and_no_rows() -> None:
    bias = torch.randn(64)
    layer = Int8Linear(torch.randn(64, 64), bias)
    assert torch.equal(layer(torch.zeros(2, 64)), bias.expand(2, 64))
    assert bool(layer(torch.full((1, 64), 1e-41)).isfinite().all())
    assert layer(torch.zeros(0, 64)).shape == (0, 64)
    assert bool((Int8Linear(torch.zeros(64, 64), bias)(torch.randn(3, 64)) == bias).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    layer, x = Int8Linear(torch.randn(64, 64).to(dtype), None), torch.randn(3, 64).to(dtype)
    assert layer(x).dtype == dtype
    assert torch.equal(layer(x), layer(x.float()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_default_dtype(dtype: torch.dtype) -> None:
    """As transformers sets it, for all threads, while it loads another model."""
    weight, x, before = torch.randn(64, 64), torch.randn(30, 64), torch.get_default_dtype()
    expected = Int8Linear(weight, None)(x)
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(Int8Linear(weight, None)(x), expected)
    finally:
        torch.set_default_dtype(before)


def test_compiled_and_eager_are_equal() -> None:
    in_c, eager = int8_kernels.compiled(), int8_kernels.EagerKernels()
    if in_c is None:
        pytest.skip("there is no C compiler")
    for width in (1, 7, 16, 64, 96, 384, 1000):
        block = rotated_block(width)
        x = torch.randn(900, width) * torch.logspace(-32, 32, 900)[:, None]
        x[0], x[1], x[2] = 0.0, x[1].abs(), -x[2].abs()
        x[3, 0], x[4, 0] = torch.nan, torch.inf
        factor, sums, bias = torch.rand(width) + 0.1, torch.randn(width), torch.randn(width)
        (q, scale, offset), (q2, scale2, offset2) = in_c.quantize(x, factor, block), eager.quantize(x, factor, block)
        fine = torch.ones(900, dtype=torch.bool)
        fine[3:5] = False
        for first, second in ((q, q2), (scale, scale2), (offset, offset2)):
            assert torch.equal(first[fine], second[fine])
        assert bool(scale[3:5].isnan().all()) and bool(scale2[3:5].isnan().all())
        y = torch.randn(900, width)
        first = in_c.dequantize(y.clone(), scale, offset, sums, bias)
        second = eager.dequantize(y.clone(), scale, offset, sums, bias)
        assert torch.equal(first[fine], second[fine])

        first = in_c.dequantize(y.clone(), scale, offset, sums, bias, gelu=True)
        second = eager.dequantize(y.clone(), scale, offset, sums, bias, gelu=True)
        assert torch.allclose(first[fine], second[fine], atol=2e-6, rtol=1e-6)
        assert bool(first[3:5].isnan().all())


def test_rotations() -> None:
    assert [rotated_block(width) for width in (1, 8, 16, 24, 96, 384, 1536, 4864, 1000)] == [
        1,
        1,
        16,
        1,
        32,
        128,
        128,
        128,
        1,
    ]
    x = torch.randn(5, 384, dtype=torch.double)
    turned = rotated(x, 128)
    torch.testing.assert_close(rotated(turned, 128), 128 * x)
    torch.testing.assert_close(turned[:, :128], x[:, :128] @ hadamard(7).double())
    assert torch.equal(rotated(x, 1), x)


def hadamard(exponent: int) -> torch.Tensor:
    matrix = torch.ones(1, 1)
    for _ in range(exponent):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def error_of_inputs(layer: Int8Linear, weight: torch.Tensor, x: torch.Tensor) -> float:
    """What the rounding of inputs alone costs: how fine weights are differs from processor to processor."""
    integers, scale = quantization._round(rotated(weight, layer._block) / layer._block, quantization.pair_limit())
    expected = rotated(x, layer._block).double() @ (integers * scale[:, None]).double().t()
    return float((layer(x) - expected).norm())


def test_one_large_number_does_not_coarsen_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a token's own, which no scale of a channel evens out."""
    x, weight = torch.randn(200, 384), torch.randn(96, 384)
    x[torch.arange(200), torch.randint(384, (200,))] *= 40
    layer = Int8Linear(weight, None)
    monkeypatch.setattr(quantization, "rotated_block", lambda width: 1)
    assert error_of_inputs(layer, weight, x) < error_of_inputs(Int8Linear(weight, None), weight, x) / 3


def test_a_gelu_that_follows(wide_bert: str) -> None:
    layers = LLM(wide_bert, quantization="int8")._open.engine.runner.backbone.encoder.layer
    assert [layer.intermediate.dense.forward._gelu for layer in layers[:-1]] == [True] * (len(layers) - 1)
    x = torch.randn(7, 64)
    for layer in layers[:-1]:
        layer.requires_grad_(False)
        found = layer.intermediate(x)
        expected = nn.functional.gelu(
            nn.functional.linear(x, layer.intermediate.dense.weight, layer.intermediate.dense.bias)
        )
        assert 0 < float((found - expected).norm() / expected.norm()) < 0.03
        with running(exact=True):
            torch.testing.assert_close(layer.intermediate(x), expected)
    assert "forward" not in vars(layers[-1].intermediate.intermediate_act_fn)


def test_a_gelu_of_several_layers_stays_where_it_is() -> None:
    class Block(nn.Module):
        def __init__(self, activation: nn.Module) -> None:
            super().__init__()
            self.dense, self.intermediate_act_fn = nn.Linear(64, 64), activation

    activation = nn.GELU()
    model = nn.Sequential(Block(activation), Block(activation), Block(nn.GELU()))
    assert quantize_int8(model) == 3
    assert [each.dense.forward._gelu for each in model] == [False, False, True]  # type: ignore[union-attr]
    assert "forward" not in vars(activation)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Int8Linear(torch.randn(64, 64), torch.randn(64)), torch.randn(30, 64)
    expected = layer(x)
    int8_kernels.compiled.cache_clear()
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    assert int8_kernels.compiled() is None
    assert torch.equal(layer(x), expected)
    int8_kernels.compiled.cache_clear()
    monkeypatch.setattr(compiler.shutil, "which", lambda name: "/bin/false")
    assert int8_kernels.compiled() is None
    int8_kernels.compiled.cache_clear()


def test_two_threads() -> None:
    layer = Int8Linear(torch.randn(256, 128), torch.randn(256))
    inputs = [torch.randn(64 + index, 128) for index in range(40)]
    expected = [layer(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(layer, inputs * 5), expected * 5, strict=True):
            assert torch.equal(got, want)


def bert() -> nn.Module:
    config = BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=99
    )
    return BertModel(config).eval()


def gpt2() -> nn.Module:
    return GPT2Model(GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=99)).eval()


@pytest.mark.parametrize(("make", "count"), [(bert, 12), (gpt2, 8)])
@pytest.mark.parametrize("watch", [False, True])
@torch.inference_mode()
def test_a_backbone(make, count: int, watch: bool) -> None:  # type: ignore[no-untyped-def]
    model = make()
    ids = torch.randint(0, 99, (2, 20))
    with watch_inputs(model) as most:
        expected = model(ids)[0]
    assert quantize_int8(model, None, most if watch else None) == count
    error = (model(ids)[0] - expected).norm() / expected.norm()
    assert 0 < float(error) < 0.02
    assert quantize_int8(model) == 0  # what was swapped stays


def test_skipped_and_special_layers_stay() -> None:
    class Scaled(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(64, 64), Scaled(64, 64), nn.Linear(64, 8), Conv1D(64, 64))
    assert quantize_int8(model, lambda name, module: name == "0") == 1
    assert ["forward" in vars(each) for each in model] == [False, False, False, True]


@pytest.fixture(scope="module")
def wide_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier whose layers are wide enough for int8."""
    return str(tiny.classifier("bert", tmp_path_factory.mktemp("bert"), hidden_size=64, intermediate_size=96))


def test_of_the_last_layer_only_keys_and_values_are_int8(wide_bert: str) -> None:
    llm = LLM(wide_bert, quantization="int8")
    *inner, last = llm._open.engine.runner.backbone.encoder.layer
    for layer in inner:
        attention: Any = layer.attention.self
        assert isinstance(attention.query.forward.func.__self__.product, Int8Linear)
        assert isinstance(layer.output.dense.forward, Int8Linear)
    shared = last.attention.self.query.forward.func.__self__
    assert not isinstance(shared.product, Int8Linear)
    assert isinstance(shared._without_query, Int8Linear)
    assert not any("forward" in vars(each) for each in (last.attention.output.dense, last.output.dense))


def test_a_result_does_not_depend_on_its_batch_in_int8(wide_bert: str) -> None:
    llm = LLM(wide_bert, quantization="int8")
    prompts = [[20 + i] * (3 + 5 * i) for i in range(6)]
    together = llm.classify(prompts)
    for prompt, output in zip(prompts, together, strict=True):
        (alone,) = llm.classify([prompt])
        assert output.outputs.logits == pytest.approx(alone.outputs.logits, abs=1e-5)


def test_int8_near_float32(wide_bert: str) -> None:
    prompts = [[20 + i] * (3 + 5 * i) for i in range(6)]
    exact, coarse = LLM(wide_bert).classify(prompts), LLM(wide_bert, quantization="int8").classify(prompts)
    logits = [torch.tensor([each.outputs.logits for each in outputs]) for outputs in (exact, coarse)]
    assert 0 < float((logits[0] - logits[1]).abs().max()) < 0.05


def test_a_model_in_int8_can_be_copied(wide_bert: str) -> None:
    model = LLM(wide_bert, quantization="int8").model
    assert torch.equal(copy.deepcopy(model).classifier.weight, model.classifier.weight)


def test_a_processor_that_is_good_at_bfloat16_runs_int8_from_float32(
    wide_bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert LLM(wide_bert, quantization="int8").describe()["dtype"] == "float32"
    with pytest.raises(ConfigError, match="--dtype float32"):
        LLM(wide_bert, quantization="int8", dtype="bfloat16")


def test_a_model_without_such_layers_is_refused(tmp_path: Path) -> None:
    narrow = tiny.classifier("bert", tmp_path, hidden_size=16, intermediate_size=24)
    with pytest.raises(ConfigError, match="no linear layer"):
        LLM(str(narrow), quantization="int8")


def test_nowhere_to_compile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    int8_kernels.compiled.cache_clear()
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    try:
        assert int8_kernels.compiled() is None
    finally:
        int8_kernels.compiled.cache_clear()
