"""Projections that read the same input run as one product, and the model remains what it was."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from tests.models import tiny
from vllm_cls import LLM
from vllm_cls.runtime.batch import pooled_spans, spans_of
from vllm_cls.runtime.context import running
from vllm_cls.runtime.layers import fusion
from vllm_cls.runtime.layers.fusion import Product, fuse, tanh_gelu, unfuse
from vllm_cls.runtime.row import PackedRow


class Block(nn.Module):
    """Attention's projections by the names given, each of its own width."""

    def __init__(self, names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj"), bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names = names
        for number, name in enumerate(names):
            setattr(self, name, nn.Linear(8, 6 - number, bias=bias))

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        given = inputs * len(self.names) if len(inputs) == 1 else inputs
        return [getattr(self, name)(x) for name, x in zip(self.names, given, strict=True)]


class Counting:
    """Makes products and notes how many outputs each of their calls computes."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
        def product(x: torch.Tensor) -> torch.Tensor:
            self.calls.append(len(weight))
            return F.linear(x, weight, bias)

        return product


def fused(block: nn.Module) -> tuple[nn.Module, list[int]]:
    counting = Counting()
    fuse(block, counting)
    return block, counting.calls


def close(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.allclose(*pair, atol=1e-6) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("names", fusion._QUERY_KEY_VALUE, ids="-".join)
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_projections_of_one_input_are_one_product(names: tuple[str, ...], bias: bool) -> None:
    block, x = Block(names, bias), torch.randn(2, 5, 8)
    expected = block(x)
    block, calls = fused(block)
    for _ in range(2):
        assert close(block(x), expected)
    assert calls == [sum(6 - i for i in range(len(names)))] * 2


@torch.inference_mode()
def test_other_inputs_are_noticed() -> None:
    inputs = [torch.randn(2, 5, 8) for _ in range(3)]
    block = Block()
    for given in (
        inputs,
        [inputs[0], inputs[0], inputs[1]],
        [inputs[0], inputs[1], inputs[0]],
        [inputs[0].clone()] * 3,
    ):
        plain = copy.deepcopy(block)
        expected = plain(*given)
        assert close(fused(plain)[0](*given), expected)


@torch.inference_mode()
def test_projections_called_in_another_order_or_by_themselves() -> None:
    x, block = torch.randn(1, 5, 8), Block()
    expected = block(x)
    plain: Any = fused(block)[0]
    assert close([plain.v_proj(x), plain.k_proj(x), plain.q_proj(x)], expected[::-1])
    assert close([plain.k_proj(x), plain.k_proj(x)], [expected[1]] * 2)
    assert close([plain.q_proj(x), plain.k_proj(x)], expected[:2])
    assert close(plain(x + 1), Block()(x + 1))


@torch.inference_mode()
def test_the_last_layer_computes_no_queries_for_keys_and_values() -> None:
    x, block = torch.randn(1, 5, 8), Block()
    expected = block(x)
    block, calls = fused(block)
    row = PackedRow(spans := spans_of([5]), torch.tensor([0]), pooled_spans(spans, [0]), wants_keys_only=True)
    with running(row=row):
        first, *rest = block(x)
    assert close(rest, expected[1:])
    assert first.shape == expected[0].shape
    assert calls == [5 + 4]
    row.last_keys, row.wants_keys_only = (x, x), False
    with running(row=row):
        assert close(block(x), expected)


class Scaled(nn.Linear):
    """Does more than a product."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class LowRank(nn.Module):
    """As adapters wrap a layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.down, self.up = base, nn.Linear(8, 2), nn.Linear(2, base.out_features)
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.up(self.down(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Scaled(8, 5),
        lambda: LowRank(nn.Linear(8, 5)),
        lambda: nn.Linear(8, 5, bias=False),
        lambda: nn.Linear(9, 5),
        lambda: nn.Linear(8, 5, dtype=torch.float64),
        nn.Identity,
    ],
    ids=["subclass", "adapter", "no bias", "other width", "other dtype", "no linear"],
)
def test_what_is_no_plain_sibling_is_left_alone(make: Callable[[], nn.Module]) -> None:
    block: Any = Block()
    block.k_proj = make()
    assert fuse(block) == 0
    assert not any("forward" in vars(module) for module in block.modules())


@torch.inference_mode()
def test_an_adapter_around_joined_layers_still_adds_its_part() -> None:
    x, block = torch.randn(1, 5, 8), Block()
    torch.manual_seed(1)
    wrapped: Any = copy.deepcopy(block)
    low_rank = LowRank(wrapped.k_proj)
    expected = [block.q_proj(x), low_rank(x), block.v_proj(x)]  # type: ignore[operator]
    fuse(wrapped)
    wrapped.k_proj = low_rank
    assert close(wrapped(x), expected)


@pytest.mark.parametrize("names", [("gate_proj", "up_proj"), ("w1", "w3")], ids="-".join)
def test_names_that_may_read_other_inputs_are_left_alone(names: tuple[str, ...]) -> None:
    assert fuse(Block(names)) == 0


@torch.inference_mode()
def test_one_module_under_several_names() -> None:
    x = torch.randn(1, 5, 8)
    for same, other in (("q_proj", "k_proj"), ("k_proj", "v_proj"), ("q_proj", "v_proj")):
        block: Any = Block()
        setattr(block, other, getattr(block, same))
        expected = block(x)
        assert close(fused(block)[0](x), expected)
    block = Block()
    block.k_proj = nn.Linear(8, 6)
    block.k_proj.weight = block.q_proj.weight  # one parameter in two modules
    expected = block(x)
    assert close(fused(block)[0](x), expected)
    block.q_proj.weight.data.mul_(2)
    again = Block()
    again.q_proj.weight.data.copy_(block.q_proj.weight)
    assert torch.allclose(block.k_proj(x), F.linear(x, again.q_proj.weight, block.k_proj.bias), atol=1e-6)


@torch.inference_mode()
def test_weights_changed_in_place_are_seen() -> None:
    x, block = torch.randn(1, 5, 8), Block()
    changed: Any = fused(copy.deepcopy(block))[0]
    for model in (changed, block):
        model.k_proj.weight.data[0] = 3.0  # type: ignore[union-attr, index]
        model.v_proj.bias.data.add_(1)  # type: ignore[union-attr]
    assert close(changed(x), block(x))
    changed.load_state_dict(Block().state_dict())
    assert close(changed(x), Block()(x))


def test_gradients_are_those_of_the_plain_model() -> None:
    x = torch.randn(1, 5, 8)
    block, plain = fused(Block())[0], Block()
    for model in (block, plain):
        sum(each.square().sum() for each in model(x)).backward()  # type: ignore[union-attr]
    for parameter, other in zip(block.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(parameter.grad, other.grad, atol=1e-6)  # type: ignore[arg-type]


@torch.inference_mode()
def test_unfuse_gives_the_own_forwards_back() -> None:
    x, block = torch.randn(1, 5, 8), Block()
    expected = block(x)
    block.add_module("activation", transformers.activations.NewGELUActivation())
    assert fuse(block) == 4
    unfuse(block)
    assert not any("forward" in vars(module) for module in block.modules())
    assert close(block(x), expected)


def test_several_threads_use_one_joined_product() -> None:
    block: Any = fused(Block())[0]
    plain = Block()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    @torch.inference_mode()
    def use(seed: int) -> bool:
        generator = torch.Generator().manual_seed(seed)
        return all(
            close(block(x), plain(x)) for x in (torch.randn(1, 1 + seed, 8, generator=generator) for _ in range(150))
        )

    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(use, range(8)))
    finally:
        sys.setswitchinterval(before)


@torch.inference_mode()
def test_the_input_is_let_go_once_all_have_read_it() -> None:
    block: Any = fused(Block())[0]
    block(torch.randn(1, 5, 8))
    memo = block.q_proj.forward.func.__self__._memo
    assert not vars(memo).get("input") and "output" not in vars(memo)


@pytest.mark.parametrize("name", fusion.TANH_GELU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_the_quick_tanh_gelu_is_the_slow_one(name: str, dtype: torch.dtype) -> None:
    kind = getattr(transformers.activations, name, None)
    if kind is None:
        pytest.skip("this transformers has no such activation")
    x = torch.cat([torch.linspace(-30, 30, 2001), torch.tensor([0.0, -0.0, 300.0, -300.0, 1e4, -1e4])]).to(dtype)
    expected = kind()(x.float())
    error = (tanh_gelu(x).float() - expected).abs() / expected.abs().clamp_min(1)
    assert float(error.max()) <= {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]


def test_the_quick_tanh_gelu_has_a_gradient() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    tanh_gelu(x).sum().backward()
    other = x.detach().clone().requires_grad_()
    F.gelu(other, approximate="tanh").sum().backward()
    assert torch.allclose(x.grad, other.grad, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "qwen2", "llama", "opt", "albert"])
def test_a_model_saved_after_fusion_is_the_model_that_was_loaded(tmp_path: Path, name: str) -> None:
    folder = tiny.classifier(name, tmp_path / "model")
    llm = LLM(str(folder))
    assert any("forward" in vars(module) for module in llm.model.base_model.modules())
    llm.classify([[20, 21, 22]])
    llm.model.save_pretrained(tmp_path / "saved")
    first, second = (
        transformers.AutoModelForSequenceClassification.from_pretrained(each).state_dict()
        for each in (folder, tmp_path / "saved")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    size = {each: sum(file.stat().st_size for file in each.glob("*.safetensors")) for each in tmp_path.iterdir()}
    assert size[tmp_path / "saved"] <= size[folder] + 1000
    assert "vcls" not in (tmp_path / "saved" / "config.json").read_text()
