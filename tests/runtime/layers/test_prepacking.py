"""Products whose weight was laid out once give what the plain ones give, and the model remains what it was."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from tests.models import tiny
from vllm_cls import LLM
from vllm_cls.runtime.layers import prepacking
from vllm_cls.runtime.layers.prepacking import PackedLayer, kernels, prepack, same, unpack

PACKED = [each for each in kernels() if each != prepacking.PLAIN]
pytestmark = pytest.mark.skipif(not PACKED, reason="nothing packs here")


@pytest.fixture(params=PACKED)
def packs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As on a processor where one kernel is the fastest for every shape."""
    monkeypatch.setattr(prepacking, "chosen", lambda *shape: request.param)
    return str(request.param)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 48), (0, 48), (1, 37, 48), (600, 48)])
def test_a_packed_product_is_the_plain_one(name: str, shape: tuple[int, ...], bias: bool, gelu: str | None) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 40, bias=bias), torch.randn(shape)
    packed = kernels()[name](layer.weight, layer.bias, gelu)
    with torch.inference_mode():
        expected = layer(x) if gelu is None else F.gelu(layer(x), approximate=gelu)
        torch.testing.assert_close(packed(x), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PACKED)
def test_a_strided_input_and_a_transposed_weight(name: str) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(48, 40).t(), torch.randn(9, 96)[:, ::2]
    with torch.inference_mode():
        torch.testing.assert_close(kernels()[name](weight, None)(x), F.linear(x, weight), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("packs")
def test_gradients_are_those_of_the_plain_layer() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 40), torch.randn(5, 48, requires_grad=True)
    F.gelu(layer(x)).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None
    wanted = x.grad.clone(), layer.weight.grad.clone()
    x.grad = layer.weight.grad = None
    PackedLayer(layer, layer.weight, "none")(x).sum().backward()
    torch.testing.assert_close((x.grad, layer.weight.grad), wanted)


@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen2", "distilbert", "modernbert"])
def test_a_model_packs_its_products_and_keeps_its_logits(name: str, packs: str, tmp_path: Path) -> None:
    folder = str(tiny.classifier(name, tmp_path))
    prompts = [[7, 8, 9], [11] * 20, [5, 6] * 9]
    llm = LLM(folder, dtype="float32")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([each])).logits for each in prompts])
    found = torch.tensor([each.outputs.logits for each in llm.classify(prompts)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    forwards = [vars(module).get("forward") for module in llm.model.modules()]
    assert any(isinstance(each, PackedLayer) for each in forwards)
    assert llm.describe()["matrix_kernels"].keys() == {packs} | ({"torch"} & llm.describe()["matrix_kernels"].keys())


@pytest.mark.usefixtures("packs")
def test_gelu_runs_inside_the_product_before_it(tmp_path: Path) -> None:
    llm = LLM(str(tiny.classifier("bert", tmp_path)), dtype="float32")
    feed_forward = llm.model.bert.encoder.layer[0].intermediate
    assert feed_forward.dense.forward.gelu == "none"
    assert feed_forward.intermediate_act_fn.forward is same


@pytest.mark.usefixtures("packs")
def test_a_copy_of_the_model_runs_its_own_weights() -> None:
    model = nn.ModuleDict({"dense": nn.Linear(48, 64), "intermediate_act_fn": nn.GELU(approximate="tanh")})
    prepack(model)
    other = copy.deepcopy(model)
    nn.init.zeros_(other["dense"].weight)
    nn.init.ones_(other["dense"].bias)
    with torch.inference_mode():
        y = other["intermediate_act_fn"](other["dense"](torch.randn(3, 48)))
    torch.testing.assert_close(y, F.gelu(torch.ones(3, 64), approximate="tanh"))


@pytest.mark.usefixtures("packs")
def test_unpack_gives_every_forward_back() -> None:
    model = nn.ModuleDict({"dense": nn.Linear(48, 64), "intermediate_act_fn": nn.GELU(), "o": nn.Linear(64, 48)})
    assert prepack(model) == 2
    assert vars(model["intermediate_act_fn"])["forward"] is same
    unpack(model)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.usefixtures("packs")
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 1 << 30), (torch.float32, 100)])
def test_other_dtypes_and_models_too_large_to_hold_twice_stay(
    dtype: torch.dtype, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepacking, "_MOST_BYTES", limit)
    assert not prepacking.pays(nn.Linear(48, 40, dtype=dtype))


def test_small_layers_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacking, "fastest", lambda *args: "tried")
    assert prepacking.chosen(1000, 640) == "tried"
    assert prepacking.chosen(48, 64) == prepacking.PLAIN
