"""The self-check: an architecture that leaks between packed sequences is never packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.models import tiny
from vllm_cls import LLM, ModelError
from vllm_cls.runtime.attention import packed_attention
from vllm_cls.runtime.loadtime import equivalence


def test_windows_are_crossed_where_that_is_cheap() -> None:
    config = AutoConfig.for_model("mistral", sliding_window=64, max_position_embeddings=4096)
    lengths, limit = equivalence.check_lengths(config, 10**6, "cpu", 4096)
    assert max(lengths) > 64 and limit is None
    lengths, limit = equivalence.check_lengths(config, 10**11, "cpu", 4096)
    assert max(lengths) < 64 and limit == 64


def test_sequences_beyond_an_unchecked_window_run_alone(tmp_path: Path) -> None:
    llm = LLM(str(tiny.classifier("qwen2-window", tmp_path)))
    runner: Any = llm._open.engine.runner
    expected = llm.classify([[20] * 30, [21] * 30, [22] * 5])
    runner.mode = type(runner.mode)("packed", checked_up_to=8)
    before = llm.counters.num_forwards
    outputs = llm.classify([[20] * 30, [21] * 30, [22] * 5])
    assert llm.counters.num_forwards - before == 3
    for output, other in zip(outputs, expected, strict=True):
        assert output.outputs.probs == pytest.approx(other.outputs.probs, abs=1e-5)


def test_attention_that_leaks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.classifier("bert", tmp_path)
    expected = LLM(str(folder)).classify(["The film was good", "bad", "a boring end"])

    def leaking(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=kwargs["scaling"])
        return output.transpose(1, 2), None

    packed_attention.AttentionInterface.register(packed_attention.NAME, leaking)
    try:
        llm = LLM(str(folder))
    finally:
        packed_attention.AttentionInterface.register(packed_attention.NAME, packed_attention.packed_attention)
    described = llm.describe()
    assert described["execution"] == "padded"
    assert "differ by" in described["why_not_packed"]
    outputs = llm.classify(["The film was good", "bad", "a boring end"])
    for output, other in zip(outputs, expected, strict=True):
        assert output.outputs.probs == pytest.approx(other.outputs.probs, abs=1e-5)


def test_a_head_that_is_not_what_it_seems_falls_back_to_the_whole_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_cls.plugins.qwen2 import Qwen2

    folder = tiny.classifier("qwen2", tmp_path)
    expected = LLM(str(folder)).classify(["good", "The film was bad"])
    monkeypatch.setattr(Qwen2, "head", lambda self, model: lambda pooled: model.score(pooled) * 2)
    llm = LLM(str(folder))
    described = llm.describe()
    assert described["execution"] == "whole forward, padded"
    assert "differs by" in described["why_not_packed"]
    for output, other in zip(llm.classify(["good", "The film was bad"]), expected, strict=True):
        assert output.outputs.probs == pytest.approx(other.outputs.probs, abs=1e-5)


def test_a_model_that_cannot_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.classifier("bert", tmp_path)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("transformers.BertModel.forward", fails)
    with pytest.raises(ModelError, match="own forward fails on a text of 5 tokens.*shapes do not fit"):
        LLM(str(folder))
