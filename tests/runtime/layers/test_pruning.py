"""The last layer runs for the pooled positions alone, and only where that is exact."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from tests.models import tiny
from vllm_cls import LLM, load_classifier
from vllm_cls.runtime.batch import spans_of
from vllm_cls.runtime.context import running
from vllm_cls.runtime.layers.pruning import _cut, prune_last_layer
from vllm_cls.runtime.row import PackedRow

PROMPTS = [[20 + i for i in range(n)] for n in (5, 1, 17, 9)]
TOKENS = sum(map(len, PROMPTS))


@contextmanager
def rows_seen_by(module: nn.Module) -> Iterator[list[int]]:
    """How many rows a module is given in each of its calls."""
    seen: list[int] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-2]))
    try:
        yield seen
    finally:
        handle.remove()


MLPS: dict[str, Callable[[Any], nn.Module]] = {
    "bert": lambda model: model.bert.encoder.layer[-1].intermediate,
    "gpt2": lambda model: model.transformer.h[-1].mlp,
    "qwen2": lambda model: model.model.layers[-1].mlp,
    "gemma2": lambda model: model.model.layers[-1].mlp,
}


@pytest.mark.parametrize("name", MLPS)
def test_the_last_mlp_sees_the_pooled_rows_alone(tmp_path: Path, name: str) -> None:
    llm = LLM(str(tiny.classifier(name, tmp_path)))
    with rows_seen_by(MLPS[name](llm.model)) as seen:
        llm.classify(PROMPTS)
    assert seen == [len(PROMPTS)]
    assert llm.counters.num_pruned_tokens == TOKENS - len(PROMPTS)


def test_a_beginning_that_is_kept_ends_at_the_last_layers_keys(tmp_path: Path) -> None:
    llm = LLM(str(tiny.classifier("qwen2", tmp_path)))
    prompts = [[*range(20, 40), 80 + i] for i in range(9)]
    with rows_seen_by(MLPS["qwen2"](llm.model)) as seen:
        llm.classify(prompts)
    assert seen == [9], "nothing for the beginning, one row for each prompt"
    assert llm.counters.num_pruned_tokens == 20


def test_token_classify_gets_every_state_of_the_last_layer(tmp_path: Path) -> None:
    folder = tiny.classifier("qwen2", tmp_path)
    llm = LLM(str(folder))
    outputs = llm.encode(PROMPTS, pooling_task="token_classify")
    assert llm.counters.num_pruned_tokens == 0
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        with torch.no_grad():
            logits = model.score(model.model(input_ids=torch.tensor([prompt]))[0][0])
        assert torch.allclose(output.outputs.data, logits.softmax(-1), atol=1e-4)


def test_layers_that_run_more_than_once_are_not_pruned(tmp_path: Path) -> None:
    """ALBERT's one group runs three times; as many inner layers as runs look like a list of layers."""
    for name, values in (("shared", {}), ("inner", {"num_hidden_layers": 2, "inner_group_num": 2})):
        folder = tiny.classifier("albert", tmp_path / name, **values)
        llm = LLM(str(folder))
        described = llm.describe()
        assert (described["execution"], described["pruned_last_layer"]) == ("packed", False)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        for prompt, output in zip(PROMPTS, llm.classify(PROMPTS), strict=True):
            with torch.no_grad():
                expected = model(input_ids=torch.tensor([prompt])).logits[0]
            assert torch.allclose(torch.tensor(output.outputs.logits), expected, atol=1e-4)


def test_a_model_of_one_layer(tmp_path: Path) -> None:
    for name, values in (("bert", {"num_hidden_layers": 1}), ("qwen2", {"num_hidden_layers": 1})):
        folder = tiny.classifier(name, tmp_path / name, **values)
        llm = LLM(str(folder))
        assert llm.describe()["pruned_last_layer"]
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        for prompt, output in zip(PROMPTS, llm.classify(PROMPTS), strict=True):
            with torch.no_grad():
                expected = model(input_ids=torch.tensor([prompt])).logits[0]
            assert torch.allclose(torch.tensor(output.outputs.logits), expected, atol=1e-4)


def mixing(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer that also mixes tokens outside attention, as a convolution or a token shift does."""

    def mixed(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        states = forward(hidden_states, *args, **kwargs)
        positions = kwargs["position_ids"][..., None]
        return states + 0.5 * torch.where(positions > 0, states.roll(1, dims=1), 0 * states)

    return mixed


def test_a_last_layer_that_mixes_tokens_outside_attention_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.classifier("qwen2", tmp_path)
    made = transformers.Qwen2Model.__init__

    def with_mixing(self: Any, config: Any) -> None:
        made(self, config)
        self.layers[-1].forward = mixing(self.layers[-1].forward)

    monkeypatch.setattr(transformers.Qwen2Model, "__init__", with_mixing)
    llm = LLM(str(folder))
    described = llm.describe()
    assert (described["execution"], described["pruned_last_layer"]) == ("packed", False)
    assert described["prefix_sharing"] is False
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for prompt, output in zip(PROMPTS, llm.classify(PROMPTS), strict=True):
        with torch.no_grad():
            ids = torch.tensor([prompt])
            expected = model(input_ids=ids, position_ids=torch.arange(len(prompt))[None]).logits[0]
        assert torch.allclose(torch.tensor(output.outputs.logits), expected, atol=1e-4)


def test_the_rows_of_arguments() -> None:
    rows = torch.tensor([1, 3])
    states, positions = torch.arange(40.0).view(1, 4, 10), torch.arange(4)[None]
    cuts: dict[Any, bool] = {}
    assert torch.equal(_cut(states, rows, 4, cuts, (0,)), states[:, [1, 3]])
    assert torch.equal(_cut(positions, rows, 4, cuts, ("ids",)), positions[:, [1, 3]])
    three = torch.arange(12).view(3, 1, 4, 1)
    cosine, sine = _cut((three, three), rows, 4, cuts, ("rope",))
    assert torch.equal(cosine, three[:, :, [1, 3]]) and torch.equal(sine, cosine)
    for same in (None, True, "sdpa", torch.arange(4), torch.zeros(1, 7, 10)):
        assert _cut(same, rows, 4, cuts, ("same",)) is same
    heads = torch.zeros(1, 7, 10)  # seven heads, as the first run found: not tokens in a row of seven either
    assert _cut(heads, rows, 7, cuts, ("same",)) is heads


def test_without_a_row_the_layer_is_as_it_was() -> None:
    layer = nn.Linear(4, 4)
    x = torch.randn(1, 3, 4)
    expected = layer(x)
    prune_last_layer([layer])
    assert torch.equal(layer(x), expected)
    with running(row=PackedRow(spans_of([3]))):
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen2"])
def test_a_copy_of_the_model_runs_its_own_weights(tmp_path: Path, name: str) -> None:
    folder = tiny.classifier(name, tmp_path)
    llm = LLM(str(folder))
    before = llm.classify([PROMPTS[2]])[0].outputs.logits
    mine: Any = copy.deepcopy(llm.model)
    mine.set_attn_implementation("sdpa")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for model in (mine, plain):
        for parameter in model.parameters():
            parameter.data.mul_(1.5)
    ids = torch.tensor([PROMPTS[2]])
    assert torch.allclose(mine(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-4)
    for model in (mine, plain):
        model(input_ids=ids, labels=torch.tensor([1])).loss.backward()
    expected = {name: each.grad for name, each in plain.named_parameters()}
    for name, each in mine.named_parameters():
        torch.testing.assert_close(each.grad, expected[name], atol=1e-4, rtol=1e-4)
    assert not any(each.grad is not None for each in llm.model.parameters())
    assert llm.classify([PROMPTS[2]])[0].outputs.logits == before


def test_load_classifier_is_transformers_own_model(tmp_path: Path) -> None:
    folder = tiny.classifier("qwen2", tmp_path)
    llm = LLM(str(folder))
    llm.classify(PROMPTS)
    model = load_classifier(str(folder))
    assert not any("forward" in vars(module) for module in model.modules())
    assert any("forward" in vars(module) for module in llm.model.modules())
