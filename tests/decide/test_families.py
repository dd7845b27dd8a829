"""Families of decision heads by plugins: the answers are those of transformers' own forward, marks and `Question.answer`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from transformers.decision import DecisionConfig

from tests.decide.chat_models import REQUESTS, assert_same, tokenizer
from tests.decide.families import Clef, ClefForDecision, Kev, KevForDecision, Von, VonForDecision
from tests.models import tiny
from vllm_cls import LLM, PromptError, hookimpl
from vllm_cls.registry import registry

_STATE = "{{ state if state is string else state|tojson }}"
_KEV = (
    "{{ question.instructions }}{% for o in question.options %} opt {{ o }}<|mark|>{% endfor %} " + _STATE + "<|mark|>"
)
_KEV_AT_ONCE = (
    "{% for q in questions %}{{ q.instructions }}{% for o in q.options %} opt {{ o }}<|mark|>{% endfor %} "
    + _STATE
    + "<|mark|>\n{% endfor %} the end"
)
_VON = (
    "[CLS]"
    + _STATE
    + " {{ question.instructions }} {% for o in question.options %} {{ o }} [MASK]<|mark|>{% endfor %}[SEP]<|mark|> the end"
)
_CLEF = (
    "<|im_start|>"
    + _STATE
    + "\nINSTRUCTION: <|mark|>{{ question.instructions or question.type }}<|mark|>\n"
    + '{% for o in question.options %}OPTION {{ loop.index }}: <|mark|>{"option_id":"{{ o }}"}<|mark|>\n{% endfor %}end.'
)

Retell = Callable[[dict[str, torch.Tensor], torch.Tensor, list[int], list[int], Any], torch.Tensor]


def _kev(weights: Any, states: torch.Tensor, ids: list[int], marks: list[int], question: Any) -> torch.Tensor:
    state = weights["state.weight"] @ states[marks[-1] - 1] + weights["state.bias"]
    options = [weights["option.weight"] @ states[mark - 1] + weights["option.bias"] for mark in marks[:-1]]
    return torch.stack([option.dot(state) for option in options])


def _von(weights: Any, states: torch.Tensor, ids: list[int], marks: list[int], question: Any) -> torch.Tensor:
    assert {ids[mark - 1] for mark in marks[:-1]} == {4}  # [MASK]
    return torch.stack([weights["verdict.weight"][0].dot(states[mark - 1]) for mark in marks[:-1]])


def _clef(weights: Any, states: torch.Tensor, ids: list[int], marks: list[int], question: Any) -> torch.Tensor:
    found = []
    for start, end in zip(marks[::2], marks[1::2], strict=True):
        pooled = torch.cat([states[start:end].mean(0), weights["lm_head.weight"][ids[start:end]].mean(0)])
        found.append(weights["pooled.weight"] @ pooled + weights["pooled.bias"])
    return torch.stack([each.dot(found[0]) for each in found[1:]])


FAMILIES: dict[str, tuple[Any, str, str, Retell]] = {
    "kev": (KevForDecision, "qwen2", _KEV, _kev),
    "kev, questions at once": (KevForDecision, "qwen2", _KEV_AT_ONCE, _kev),
    "von": (VonForDecision, "bert", _VON, _von),
    "clef": (ClefForDecision, "qwen2", _CLEF, _clef),
}


@pytest.fixture(scope="module", autouse=True)
def plugin() -> Iterator[None]:
    def vcls_architectures() -> list[Any]:
        return [Kev(), Von(), Clef()]

    registry()._manager.register(SimpleNamespace(vcls_architectures=hookimpl(vcls_architectures)), "families")
    yield
    registry()._manager.unregister(name="families")


def _checkpoint(family: str, folder: Path, template: str | None = None) -> tuple[Any, DecisionConfig, Path]:
    model_class, backbone, own, _ = FAMILIES[family]
    tokens = tokenizer() if backbone == "qwen2" else tiny.tokenizers.wordpiece()
    config = tiny.config_of(backbone, max_position_embeddings=1024)
    config.vocab_size = len(tokens)
    model = tiny.randomize(model_class(config))
    settings = DecisionConfig(temperature={"noul": 2.0, "choice": 0.7}, chat_template=template or own)
    tiny.save(model, tokens, folder)
    settings.save_pretrained(folder)
    return model, settings, folder


@torch.no_grad()
def _expected(model: Any, settings: DecisionConfig, tokens: Any, family: str, request: Any) -> dict[str, Any]:
    """By transformers' own marks, forward, temperatures and form of an answer; every prompt alone."""
    found = {}
    retell, weights = FAMILIES[family][3], dict(model.state_dict())
    for inputs, questions in settings.prepare_inputs(request, tokens):
        ids, marks = inputs["input_ids"], inputs.pop("marks").tolist()
        states = model.base_model(**inputs).last_hidden_state[0]
        each = len(marks) // len(questions) if family != "kev, questions at once" else None
        for question in questions:
            count = each or len(question.options) + 1
            own, marks = marks[:count], marks[count:]
            scores = retell(weights, states, ids[0].tolist(), own, question)
            scores = settings.logits_processors[question.type](None, scores)
            found[question.name] = question.answer(scores.softmax(-1).tolist())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_a_plain_retelling(family: str, tmp_path: Path) -> None:
    model, settings, folder = _checkpoint(family, tmp_path / "model")
    tokens = AutoTokenizer.from_pretrained(folder)
    requests = [{**each, "questions": dict([*each["questions"].items()][:4])} for each in REQUESTS]
    expected = [_expected(model, settings, tokens, family, request) for request in requests]
    with LLM(str(folder)) as llm:
        assert_same(llm.decide(requests), expected, 1e-5)
        reader = llm._open.decisions
    assert reader is not None
    assert reader.causal is (family != "von")
    assert abs(expected[0]["refund"]["noul"] - expected[1]["refund"]["noul"]) > 1e-3


@pytest.mark.parametrize(
    ("family", "template", "message"),
    [
        ("kev", "A:<|mark|>", "makes 1 marks for 1 questions; this model reads 3"),
        ("kev", "<|mark|>x<|mark|>y<|mark|>", "a mark with no token before it"),
        ("clef", "x<|mark|><|mark|>x<|mark|>y<|mark|>x<|mark|>y<|mark|>", "a mark with no token before it"),
    ],
)
def test_marks_in_other_places(family: str, template: str, message: str, tmp_path: Path) -> None:
    _, _, folder = _checkpoint(family, tmp_path / "model", template)
    with LLM(str(folder)) as llm, pytest.raises(PromptError, match=message):
        llm.decide({"state": "x", "questions": {"q": {"type": "noul"}}})
