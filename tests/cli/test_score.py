from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import Result

from tests.jobs.fake import FakeLLM

Run = Callable[..., Result]


def test_options_reach_the_job(run: Run, options_of_job: Callable[[str], dict[str, object]]) -> None:
    seen = options_of_job("vllm_cls.jobs.score.score_file")
    arguments = (
        "a b -o o --format csv --text-field x --text-pair-field y --keep-fields k,l --max-tokens-per-query 3 "
        "--max-tokens-per-doc 4 --instruction i --no-activation --long-text error --truncation-side left --device cpu"
    )
    assert run("score", "model", *arguments.split(), "--score-template", r"{{ query }}\n{{ document }}").exit_code == 1
    expected = {
        "model": "model",
        "inputs": ("a", "b"),
        "output": "o",
        "format": "csv",
        "text_field": "x",
        "text_pair_field": "y",
        "keep_fields": ["k", "l"],
        "max_tokens_per_query": 3,
        "max_tokens_per_doc": 4,
        "instruction": "i",
        "use_activation": False,
        "long_text": "error",
        "truncation_side": "left",
        "device": "cpu",
        "score_template": "{{ query }}\n{{ document }}",
    }
    assert {name: seen[name] for name in expected} == expected


def test_it_runs_and_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeLLM.__init__, "__kwdefaults__", {**FakeLLM.__init__.__kwdefaults__, "labels": ("yes",)})
    result = run("score", "model", "-", stdin='{"query": "good", "document": "x"}\n{"query": "bad"}\n')
    assert result.exit_code == 3
    assert result.stdout.startswith('{"query": "good", "document": "x", "score": 0.')
    assert "2 rows in " in result.stderr and "failed: " in result.stderr


def test_a_model_with_several_labels_is_refused(run: Run) -> None:
    result = run("score", "model", "-", stdin='{"query": "good", "document": "x"}\n')
    assert result.exit_code == 1 and "num_labels 1" in result.stderr


def test_the_help_has_examples(run: Run) -> None:
    assert "vcls score my-reranker pairs.jsonl -o scored.jsonl" in run("score", "--help").output
