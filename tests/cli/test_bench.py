from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from vllm_cls.bench import peers, run
from vllm_cls.bench.options import BenchOptions

Run = Callable[..., Result]

AGREED = {
    "logit_difference": 1e-7, "spread": 1.0, "labels_changed": 0.0, "probability_change": 0.0, "tolerance": 1e-3,
    "equal": True,
}  # fmt: skip
FOUND: dict[str, Any] = {
    "environment": {"device": "a CPU", "threads": 2},
    "model": {
        "model_class": "BertForSequenceClassification", "parameters": 1000, "dtype": "float32", "quantization": "int8",
        "execution": "packed",
    },
    "workload": {"texts": 4, "tokens": 160, "description": "lengths lognormal"},
    "rounds": 5,
    "matrix": {"gflops": 100.0, "rows": 160},
    "ours": {
        "counters": {
            "num_prompts": 4, "num_prompt_tokens": 160, "num_forwards": 1, "num_tokens": 150, "num_shared_tokens": 10,
            "num_pruned_tokens": 146, "num_duplicates": 0, "num_close_calls": 1,
        },
        "stage_seconds": {"tokenize": 0.01, "forward": 0.9},
        "outside_forward": 0.012, "parallel_forwards": 2, "useful_share": 0.8, "model_share": 0.95,
    },
    "contenders": [
        {
            "name": "vllm-cls", "settings": {"threads": 2}, "error": None, "agreement": None, "seconds": [1.0],
            "texts_per_second": 4.0, "tokens_per_second": 160.0, "ratio": 1.0,
        },
        {
            "name": "padded", "settings": {"batch_size": 32, "sorted": True}, "error": None, "agreement": AGREED,
            "seconds": [2.5], "texts_per_second": 1.6, "tokens_per_second": 64.0, "ratio": 2.5,
        },
        {
            "name": "openvino", "settings": {}, "error": None, "seconds": [],
            "agreement": {**AGREED, "logit_difference": 3.0, "equal": False},
        },
        {"name": "ctranslate2", "settings": {}, "error": "no encoder [for] this", "agreement": None, "seconds": []},
    ],
    "int8": {"labels_changed_percent": 0.25, "largest_probability_change": 0.0312, "largest_logit_change": 0.1},
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[BenchOptions]:
    """What `bench` was asked for, in place of running it."""
    given: list[BenchOptions] = []

    def fake(options: BenchOptions, tell: Callable[[str], None]) -> dict[str, Any]:
        given.append(options)
        return FOUND

    monkeypatch.setattr(run, "bench", fake)
    return given


def test_what_one_screen_shows(run: Run, asked: list[BenchOptions]) -> None:
    result = run("bench", "model")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) < 24
    assert "BertForSequenceClassification, 1,000 parameters, int8, packed, on a CPU (2 threads)" in lines
    (padded,) = (line for line in lines if line.startswith("padded"))
    assert padded.split()[-4:] == ["1.6", "64", "2.50", "1.0e-07"]
    assert any("not timed: its outputs differ" in line for line in lines)
    assert any("no encoder [for] this" in line for line in lines)
    assert "useful share  80% of 100 GFLOP/s" in result.stdout
    assert "outside the forward 1.2%" in result.stdout
    assert "150 of 160 tokens computed, 10 shared, 146 pruned" in result.stdout
    assert "0.25 % of the labels changed" in result.stdout
    assert "1 of 4 prompts were close calls" in result.stdout


def test_as_json(run: Run, asked: list[BenchOptions]) -> None:
    assert json.loads(run("bench", "model", "--json").stdout) == FOUND


def test_options_arrive(run: Run, asked: list[BenchOptions]) -> None:
    result = run(
        "bench", "model", "rows.jsonl", "--against", "padded,transformers:1", "--rounds", 7, "--num-texts", 9, "--num-threads", 1,
        "--text-field", "body", "--quantization", "int8", "--max-num-batched-tokens", 512,
        "--prefix-cache-bytes", 1000,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (options,) = asked
    assert (options.model, options.input) == ("model", "rows.jsonl")
    assert options.against == ["padded", "transformers:1"]
    assert (options.rounds, options.num_texts, options.threads, options.fields.text) == (7, 9, 1, "body")
    assert options.int8 and (options.llm["max_num_batched_tokens"], options.llm["prefix_cache_bytes"]) == (512, 1000)


def test_an_unknown_peer(run: Run, bert: str) -> None:
    result = run("bench", bert, "--against", "openvin")
    assert result.exit_code == 1
    assert "there is no peer 'openvin'" in result.stderr and "Did you mean 'openvino'?" in result.stderr


def test_a_peer_that_is_not_installed(run: Run, bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.peer("openvino").__class__, "available", lambda self: None)
    result = run("bench", bert, "--against", "openvino")
    assert result.exit_code == 1
    assert "pip install openvino" in result.stderr and "Traceback" not in result.stderr


@pytest.fixture
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.models import tiny

    return str(tiny.classifier("bert", tmp_path_factory.mktemp("bert")))
