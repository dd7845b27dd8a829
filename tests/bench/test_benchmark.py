"""Whole runs on tiny models, with contenders in processes of their own; no time is asserted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import tiny
from vllm_cls import LLM
from vllm_cls.bench import benchmark, peers
from vllm_cls.bench.agreement import agreement
from vllm_cls.bench.benchmark import Entry
from vllm_cls.bench.options import BenchOptions
from vllm_cls.bench.peers.base import PeerOptions
from vllm_cls.bench.report import ours_section
from vllm_cls.bench.run import bench
from vllm_cls.config import RuntimeConfig
from vllm_cls.errors import ConfigError, VclsError

TOP = {"schema", "environment", "model", "workload", "rounds", "matrix", "ours", "contenders", "int8"}
OURS = {
    "counters", "stage_seconds", "outside_forward", "parallel_forwards", "threads", "multiply_adds", "useful_share", "model_share",
}  # fmt: skip
CONTENDER = {
    "name", "version", "settings", "open_seconds", "input", "error", "agreement", "seconds", "counters",
    "median_seconds", "texts_per_second", "tokens_per_second", "ratio", "ratio_to",
}  # fmt: skip


def test_the_report(bert: Path) -> None:
    options = BenchOptions(str(bert), against=["padded:4"], rounds=2, num_texts=12, threads=1)
    found = bench(options)
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == TOP and found["ours"].keys() == OURS
    ours, padded = found["contenders"]
    assert ours.keys() == padded.keys() == CONTENDER
    assert (ours["name"], padded["name"]) == ("vllm-cls", "padded:4")
    assert len(ours["seconds"]) == len(padded["seconds"]) == len(found["matrix"]["all_gflops"]) == 2
    assert padded["agreement"]["equal"] and ours["ratio"] == 1.0
    assert found["ours"]["counters"]["num_prompts"] == found["workload"]["texts"] == 12
    assert 0 < found["ours"]["useful_share"] <= found["ours"]["model_share"]
    assert 0 < found["ours"]["outside_forward"] < 1 and found["ours"]["parallel_forwards"] == 1


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_tagger_labels_tokens(quantization: str | None, tmp_path: Path) -> None:
    folder = str(tiny.token_classifier("bert", tmp_path / "model"))
    options = BenchOptions(folder, llm={"quantization": quantization}, rounds=1, num_texts=4, threads=1)
    found = bench(options)
    counters, tokens = found["ours"]["counters"], found["workload"]["tokens"]
    assert counters["num_prompts"] == 4 and counters["num_prompt_tokens"] == tokens
    assert all(each["error"] is None for each in found["contenders"])
    with pytest.raises(ConfigError, match="--against padded: the others classify whole texts"):
        bench(dataclasses.replace(options, against=["padded"]))


def test_rows_of_a_file(bert: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"body": "the film was good"}\n{"other": 1}\n{"body": "bad"}\n{"body": "never read"}\n')
    fields = BenchOptions("").fields.__class__("body")
    found = bench(BenchOptions(str(bert), input=str(rows), fields=fields, rounds=1, num_texts=2, threads=1))
    assert found["workload"]["texts"] == 2
    assert "1 bad" in found["workload"]["description"]


def test_a_file_without_usable_rows_is_refused(bert: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"body": "the film was good"}\n')
    with pytest.raises(ConfigError, match="--text-field"):
        bench(BenchOptions(str(bert), input=str(rows)))


def test_what_a_contender_cannot_run_is_said(bert: Path) -> None:
    with pytest.raises(VclsError, match="vllm-cls: max_num_batched_tokens=0"):
        bench(BenchOptions(str(bert), num_texts=4, rounds=1, llm={"max_num_batched_tokens": 0}))


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"threads": 0}, {"num_texts": 0}, {"workload": "none"}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        BenchOptions("model", **wrong)  # type: ignore[arg-type]


def test_int8_says_what_it_changes(bert: Path) -> None:
    options = BenchOptions(str(bert), rounds=1, num_texts=12, threads=1, llm={"quantization": "int8"})
    try:
        found = bench(options)
    except VclsError as error:
        if "not supported yet" in str(error):
            pytest.skip(str(error))
        raise
    assert {each["name"] for each in found["contenders"]} == {"vllm-cls", "vllm-cls float32"}
    assert found["int8"].keys() == {"labels_changed_percent", "largest_probability_change", "largest_logit_change"}
    assert found["int8"]["largest_probability_change"] < 0.5


def test_every_option_of_running_reaches_ours(bert: Path) -> None:
    llm = dataclasses.asdict(RuntimeConfig(512, 8, None, False, 1 << 20))
    found = bench(BenchOptions(str(bert), rounds=1, num_texts=4, llm={**llm, "num_threads": 1}))
    assert found["model"]["max_num_batched_tokens"] == 512
    assert found["contenders"][0]["settings"]["threads"] == 1


def test_all_run_the_model_with_its_adapter(bert: Path, tmp_path: Path) -> None:
    from tests.model.test_lora import train

    adapter = train(bert, tmp_path / "adapter", ["query", "value"], 3, seed=1)
    llm = {"lora": str(adapter)}
    found = bench(BenchOptions(str(bert), against=["padded:4"], rounds=1, num_texts=6, threads=1, llm=llm))
    assert found["contenders"][1]["agreement"]["equal"]
    with LLM(str(bert)) as plain, LLM(str(bert), lora=str(adapter)) as merged:
        one, other = (each.classify("good")[0].outputs.logits for each in (plain, merged))
    assert one != pytest.approx(other, abs=0.1)


class _Fake:
    """A contender that keeps what it was opened with, and then fails."""

    opened: list[tuple[str, PeerOptions]] = []

    def __init__(self, label: str, python: str | None = None) -> None: ...

    def begin_open(self, peer: str, opening: PeerOptions) -> None:
        self.opened.append((peer, opening))

    def end_open(self) -> None:
        raise ConfigError("enough")

    def __enter__(self) -> _Fake:
        return self

    def __exit__(self, *exc_info: object) -> None: ...


@pytest.mark.parametrize(("asked", "passed"), [("fp8", "fp8"), ("int8", "int8"), ("none", None), (None, None)])
def test_ours_is_opened_in_the_quantization_asked_for(
    bert: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, passed: str | None
) -> None:
    monkeypatch.setattr(benchmark, "Contender", _Fake)
    monkeypatch.setattr(_Fake, "opened", [])
    with pytest.raises(ConfigError, match="enough"):
        bench(BenchOptions(str(bert), num_texts=4, llm={"quantization": asked}))
    ((peer, opening),) = _Fake.opened
    assert (peer, opening.quantization) == (peers.OURS, passed)


def test_ours_takes_its_turns_however_it_differs() -> None:
    logits = np.array([[0.0, 1.0], [2.0, -1.0]], dtype=np.float32)
    differs = agreement(logits, 100 * logits, precision="int8")
    assert not differs.equal
    assert Entry(peers.OURS, agreement=differs).runs
    assert Entry("on pairs", rival="on pairs", agreement=differs).runs
    assert not Entry("padded", agreement=differs).runs


def test_outside_the_forward_is_of_the_wall_clock_and_all_workers() -> None:
    each: dict[str, Any] = {"required": 1, "executed": 1, "parallel_forwards": 2}
    details = [{**each, "seconds": {"tokenize": 0.1, "forward": forward}} for forward in (3.0, 2.0, 3.6)]
    found = ours_section([2.0, 2.0, 2.0], details, [1.0, 1.0, 1.0], threads=2)
    assert found["outside_forward"] == pytest.approx(0.25)
