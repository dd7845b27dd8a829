"""int8 leaves some labels open: those prompts run again in float32, and nothing else of them changes."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from vllm_cls import LLM, LoRARequest
from vllm_cls.errors import PromptError
from vllm_cls.model.float32_fallback import Boundary, Float32Fallback
from vllm_cls.outputs import ClassificationRequestOutput
from vllm_cls.runtime.counters import Counters

from ..conversion.test_named_heads import OF_TOKENS, SEQUENCES, together
from ..models import tiny
from .test_lora import train

ALL = slice(None)
WIDE = {"deberta-v2": {"pooler_hidden_size": 64}}


def model(name: str, folder: Path, **values: Any) -> str:
    """A classifier whose layers are wide enough for int8."""
    return str(tiny.classifier(name, folder, hidden_size=64, intermediate_size=96, **WIDE.get(name, {}), **values))


def prompts(count: int, shared: int = 0) -> list[list[int]]:
    generator = random.Random(0)
    beginning = [20 + place % 40 for place in range(shared)]
    return [beginning + [generator.randrange(10, 90) for _ in range(generator.randrange(2, 20))] for _ in range(count)]


def logits(outputs: list[ClassificationRequestOutput]) -> torch.Tensor:
    return torch.tensor([each.outputs.logits for each in outputs])


def close_calls(llm: LLM) -> Float32Fallback:
    found = llm._open.fallback
    assert found is not None
    return found


def reach(llm: LLM, logits: float) -> None:
    """Set how far close calls reach."""
    calls = close_calls(llm)
    calls._of_model = [replace(each, reach=logits) for each in calls.boundaries()]


def counts(llm: LLM) -> Counters:
    return llm._open.engine.counters.snapshot()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model("bert", tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize(("name", "shared"), [("bert", 0), ("qwen2", 0), ("qwen2", 24)])
def test_labels_are_those_of_float32(name: str, shared: int, tmp_path: Path) -> None:
    folder, asked = model(name, tmp_path), prompts(300, shared)
    exact, found = LLM(folder), LLM(folder, quantization="int8")
    before = counts(found)
    expected, got = exact.classify(asked), found.classify(asked)
    assert [each.outputs.label for each in got] == [each.outputs.label for each in expected]
    counted = counts(found) - before
    assert 0 < counted.num_close_calls < 300  # so some stayed with int8
    assert counted.num_prompts == 300 and counted.num_prompt_tokens == sum(map(len, asked))


@pytest.mark.parametrize("name", ["bert", "qwen2", "deberta-v2"])
@pytest.mark.parametrize("shared", [0, 24])
def test_a_close_call_is_float32_to_the_last_digits(name: str, shared: int, tmp_path: Path) -> None:
    folder, asked = model(name, tmp_path), prompts(40, shared)
    llm = LLM(folder, quantization="int8")
    expected = logits(LLM(folder).classify(asked))
    reach(llm, -1.0)
    coarse, before = logits(llm.classify(asked)), counts(llm)
    assert before.num_close_calls == 0 and float((coarse - expected).abs().max()) > 1e-4
    reach(llm, math.inf)
    torch.testing.assert_close(logits(llm.classify(asked)), expected, atol=1e-5, rtol=0)
    assert counts(llm).num_close_calls == 40
    reach(llm, -1.0)  # float32's keys and values are not int8's
    torch.testing.assert_close(logits(llm.classify(asked)), coarse, atol=1e-5, rtol=0)


def test_what_shares_a_call_changes_nothing(bert: str) -> None:
    llm, asked = LLM(bert, quantization="int8"), prompts(60)
    together, before = llm.classify(asked), counts(llm)
    alone = [llm.classify([each])[0] for each in asked]
    torch.testing.assert_close(logits(alone), logits(together), atol=1e-5, rtol=0)
    assert before.num_close_calls > 0
    assert counts(llm).num_close_calls == 2 * before.num_close_calls


def test_a_model_starts_from_zero(bert: str) -> None:
    llm = LLM(bert, quantization="int8")
    assert (counts(llm).num_prompts, counts(llm).num_forwards, counts(llm).num_close_calls) == (0, 0, 0)
    (distance,) = llm.describe()["close_call_reach"]
    assert 0 < distance < 1
    assert LLM(bert).describe()["close_call_reach"] is None


def test_it_is_the_same_in_every_process(bert: str) -> None:
    first, second = (LLM(bert, quantization="int8").describe()["close_call_reach"] for _ in range(2))
    assert first == pytest.approx(second, rel=1e-4)


def test_embeddings_and_scores_have_no_close_calls(tmp_path: Path) -> None:
    llm = LLM(model("bert", tmp_path, num_labels=1), quantization="int8")
    llm.classify(prompts(20))
    llm.embed(prompts(20))
    assert close_calls(llm).boundaries() == [] and counts(llm).num_close_calls == 0
    llm = LLM(model("bert", tmp_path / "regression", num_labels=3, problem_type="regression"), quantization="int8")
    assert close_calls(llm).boundaries() == []


def test_several_labels_have_boundaries_of_their_own(tmp_path: Path) -> None:
    folder, asked = (
        model("bert", tmp_path, num_labels=3, problem_type="multi_label_classification"),
        prompts(300),
    )
    llm = LLM(folder, quantization="int8")
    assert [each.several for each in close_calls(llm).boundaries()] == [True]
    expected, found = logits(LLM(folder).classify(asked)), logits(llm.classify(asked))
    assert torch.equal(found > 0, expected > 0)


def test_heads_and_label_texts(tmp_path: Path) -> None:
    """A prompt that any head leaves open runs again for all; label texts run again behind it."""
    source = tiny.causal_lm("qwen2", tmp_path / "source", hidden_size=64, intermediate_size=96)
    folder = together(source, tmp_path, {**OF_TOKENS, "words": SEQUENCES})
    asked = prompts(40, 8)
    expected, llm = LLM(str(folder)).classify(asked), LLM(str(folder), quantization="int8")
    assert [each.several for each in close_calls(llm).boundaries()] == [False, True, False]  # the verdict is one score
    first, *others = close_calls(llm).boundaries()
    close_calls(llm)._of_model = [replace(each, reach=-1.0) for each in others] + [replace(first, reach=math.inf)]
    for found, wanted in zip(llm.classify(asked), expected, strict=True):
        for name, output in (found.heads or {}).items():
            assert output.logits == pytest.approx(wanted.heads[name].logits, abs=1e-5)
    assert counts(llm).num_close_calls == 40


def test_an_adapter_has_boundaries_of_its_own(tmp_path: Path) -> None:
    base = model("qwen2", tmp_path / "base")
    adapter = LoRARequest("first", 1, str(train(Path(base), tmp_path / "first", ["q_proj", "down_proj"], 5, seed=1)))
    asked = prompts(100)
    options: dict[str, Any] = {"lora_request": [adapter, None] * 50}
    expected = LLM(base, enable_lora=True).classify(asked, **options)
    llm = LLM(base, enable_lora=True, quantization="int8")
    found = llm.classify(asked, **options)
    assert [each.outputs.label for each in found] == [each.outputs.label for each in expected]
    (of_model,), (of_adapter,) = close_calls(llm).boundaries(), *close_calls(llm)._of_adapters.values()
    assert 0 < of_model.reach != of_adapter.reach > 0


def test_what_measures_is_not_counted(tmp_path: Path) -> None:
    """An adapter's boundaries are measured when a request first names it; nobody asked for those prompts."""
    base = model("qwen2", tmp_path / "base")
    adapter = LoRARequest("first", 1, str(train(Path(base), tmp_path / "first", ["q_proj"], 5, seed=1)))
    llm, asked = LLM(base, enable_lora=True, quantization="int8"), prompts(3)
    llm.classify(asked, lora_request=adapter)
    counted = counts(llm)
    assert (counted.num_prompts, counted.num_prompt_tokens) == (3, sum(map(len, asked)))
    assert counted.num_close_calls <= 3 and counted.num_duplicates == 0


def test_prompts_are_counted_once(tmp_path: Path) -> None:
    """Duplicates and shared tokens are those of the prompts that were asked for, however often they ran."""
    llm = LLM(model("qwen2", tmp_path), quantization="int8")
    reach(llm, math.inf)
    asked = prompts(10, 24)
    found, counted = llm.classify(asked * 2), counts(llm)
    assert (counted.num_prompts, counted.num_duplicates, counted.num_close_calls) == (20, 10, 20)
    assert 0 < counted.num_shared_tokens == sum(each.num_cached_tokens for each in found[:10])


def test_without_a_close_call_nothing_runs_again(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, ran = LLM(bert, quantization="int8"), list[int]()
    reach(llm, -1.0)
    run = llm._open.engine.logits

    def watched(sequences: Any) -> Any:
        ran.append(len(sequences))
        return run(sequences)

    monkeypatch.setattr(llm._open.engine, "logits", watched)
    llm.classify(prompts(3))
    assert ran == [3]


def test_a_prompt_that_float32_refuses_has_no_answer(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(bert, quantization="int8")
    reach(llm, math.inf)
    run = llm._open.engine.logits

    def refusing(sequences: Any) -> Any:
        return [
            PromptError("no") if each.exact else found for each, found in zip(sequences, run(sequences), strict=True)
        ]

    monkeypatch.setattr(llm._open.engine, "logits", refusing)
    with pytest.raises(PromptError, match="no"):
        llm.classify(prompts(3))


def test_a_model_that_takes_one_prompt_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = transformers.DebertaV2Model.forward

    def alone(self: Any, input_ids: Any = None, **options: Any) -> Any:
        if len(input_ids) > 1:
            raise ValueError("one at a time")
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(transformers.DebertaV2Model, "forward", alone)
    folder, asked = model("deberta-v2", tmp_path), prompts(20)
    llm = LLM(folder, quantization="int8")
    assert llm._open.engine.runner.mode.form == "single"
    expected = LLM(folder).classify(asked)
    assert [each.outputs.label for each in llm.classify(asked)] == [each.outputs.label for each in expected]


def test_a_model_that_takes_no_short_prompts_is_measured(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = LLM(bert)._open.classifier.source.architecture
    monkeypatch.setattr(type(source), "min_tokens", lambda self, config: 40)
    calls = close_calls(LLM(bert, quantization="int8"))
    assert {len(each) for each in calls._prompts} == {40}


def test_distances() -> None:
    rows = torch.tensor([[0.5, -2.0, 0.1, 9.0], [-0.25, 3.0, 3.0, 9.0]])
    assert Boundary(slice(0, 3), several=False).distances(rows).tolist() == pytest.approx([0.4, 0.0])
    assert Boundary(slice(0, 2), several=True).distances(rows).tolist() == [0.5, 0.25]


def test_the_reach_is_a_few_times_the_error() -> None:
    exact = torch.zeros(1000, 2)
    errors = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    moved = torch.stack([errors + 7, -errors + 7], 1)  # what moves both moves no label
    found = Boundary(ALL, several=False).measured(moved, exact)
    assert found.reach == pytest.approx(2.5 * 2, rel=0.1)  # the difference moves by twice the error
    assert Boundary(ALL, several=True).measured(errors[:, None], exact[:, :1]).reach == pytest.approx(2.5, rel=0.1)


def test_without_a_finite_logit_everything_is_a_close_call() -> None:
    nothing = torch.full((4, 2), torch.nan)
    assert Boundary(ALL, several=False).measured(nothing, torch.zeros(4, 2)).reach == math.inf
