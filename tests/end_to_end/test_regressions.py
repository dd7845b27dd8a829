"""Regressions: what a hostile reading of the code once found."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import vllm_cls
from vllm_cls import (
    LLM,
    AsyncLLM,
    ConfigError,
    ModelError,
    PoolerConfig,
    PoolingParams,
    PromptError,
    convert,
    load_classifier,
)

from ..models import tiny


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.classifier("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.causal_lm("qwen2", tmp_path_factory.mktemp("qwen2"))


def train_file(folder: Path) -> str:
    rows = [{"text": f"number {i}: a {'good' if i % 2 else 'bad'} film", "label": i % 2} for i in range(40)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "train.jsonl")


def test_threads_do_not_share_truncation(bert: Path) -> None:
    llm = LLM(str(bert))
    expected = llm.classify(["The film was good"] * 2)[0].prompt_token_ids
    done = threading.Event()

    def cut() -> None:
        try:
            for _ in range(150):
                (output,) = llm.classify("x y " * 100, tokenization_kwargs={"truncate_prompt_tokens": 5})
                assert len(output.prompt_token_ids) == 5 and output.truncated
        finally:
            done.set()

    def whole() -> None:
        while not done.is_set():
            for output in llm.classify(["The film was good"] * 3):
                assert output.prompt_token_ids == expected and not output.truncated

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(cut), pool.submit(whole)]:
            each.result()


@pytest.mark.parametrize("name", ["modernbert", "bert"])
def test_a_limit_that_special_tokens_fill(tmp_path: Path, name: str) -> None:
    llm = LLM(str(tiny.classifier(name, tmp_path)))
    with pytest.raises(PromptError, match="cannot be cut to 1 tokens"):
        llm.classify("a b c " * 100, tokenization_kwargs={"truncate_prompt_tokens": 1})


@pytest.mark.parametrize("limit", [True, "5", [1], 5.5])
def test_a_limit_that_is_no_number(bert: Path, limit: Any) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        LLM(str(bert)).classify("a", tokenization_kwargs={"truncate_prompt_tokens": limit})


def test_truncation_by_its_other_names(bert: Path) -> None:
    llm = LLM(str(bert))
    assert llm.classify("bad " * 99, tokenization_kwargs={"truncation": True})[0].truncated
    with pytest.raises(PromptError, match="maximum context length"):
        llm.classify("bad " * 99, tokenization_kwargs={"truncation": False, "max_length": 10})
    with pytest.raises(ConfigError, match="truncation='bogus'"):
        llm.classify("bad", tokenization_kwargs={"truncation": "bogus"})


def test_the_pooling_of_a_converted_head_is_not_changed_quietly(bert: Path, tmp_path: Path) -> None:
    convert(str(bert), tmp_path / "mean", head="fit", train=train_file(tmp_path), pooling="mean")
    with pytest.raises(ConfigError, match="made for MEAN pooling, not CLS"):
        convert(str(tmp_path / "mean"), tmp_path / "cls", pooling="cls")
    with pytest.raises(ModelError, match="our own format already"):
        convert(str(tmp_path / "mean"), tmp_path / "new", head="random", num_labels=2)


def test_a_new_head_does_not_inherit_the_old_ones_problem_type(qwen2: Path, tmp_path: Path) -> None:
    options = {"head": "random", "labels": ["a", "b"]}
    convert(str(qwen2), tmp_path / "single", problem_type="single_label_classification", **options)  # type: ignore[arg-type]
    convert(str(tmp_path / "single"), tmp_path / "one", head="random", num_labels=1)
    assert LLM(str(tmp_path / "one")).problem_type is None
    convert(str(qwen2), tmp_path / "reg", head="random", num_labels=1, problem_type="regression")
    report = convert(str(tmp_path / "reg"), tmp_path / "fit", head="fit", train=train_file(tmp_path))
    assert report.labels == ["0", "1"]
    assert LLM(str(tmp_path / "fit")).problem_type == "single_label_classification"


def test_another_number_of_labels(bert: Path, tmp_path: Path) -> None:
    convert(str(bert), tmp_path / "two", head="random", labels=["p", "q"])
    assert len(LLM(str(tmp_path / "two")).classify("good")[0].outputs.probs) == 2


def test_load_classifier_never_invents_a_head(qwen2: Path) -> None:
    with pytest.raises(ConfigError, match="no head"):
        load_classifier(str(qwen2), convert="none")


def test_labels_of_overrides_are_used(qwen2: Path, bert: Path, tmp_path: Path) -> None:
    tokens = {"classifier_from_token": ["Ġbad", "Ġgood"], "method": "no_post_processing"}
    llm = LLM(str(qwen2), convert="classify", hf_overrides={**tokens, "id2label": {0: "n", 1: "p"}})
    assert llm.id2label == {0: "n", 1: "p"}
    with pytest.raises(ConfigError, match="makes 2 labels"):
        LLM(str(qwen2), convert="classify", hf_overrides={**tokens, "num_labels": 3})
    with pytest.raises(ConfigError, match="has a head already"):
        LLM(str(bert), hf_overrides=tokens)
    report = convert(str(qwen2), tmp_path / "out", head="random", hf_overrides={"id2label": {"0": "n", "1": "p"}})
    assert report.labels == ["n", "p"]


@pytest.mark.parametrize(
    "overrides",
    [
        {"id2label": ["a", "b", "c"]},
        {"id2label": {"a": "a", "b": "b", "c": "c"}},
        {"id2label": {1: "a", 2: "b", 3: "c"}},
        {"id2label": {0: "a", 1: "a", 2: "b"}},
        {"num_labels": "3"},
        {"model_type": "gpt2"},
        {"num_attention_heads": "x"},
        ["x"],
    ],
)
def test_overrides_that_cannot_be(bert: Path, overrides: Any) -> None:
    with pytest.raises(ConfigError, match="hf_overrides"):
        LLM(str(bert), hf_overrides=overrides)


@pytest.mark.parametrize(
    "values", [{"logit_mean": "x"}, {"seq_pooling_type": 5}, {"pooling_type": 1}, {"use_activation": "no"}]
)
def test_pooler_values_of_a_wrong_type(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="PoolerConfig"):
        PoolerConfig(**values)


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    folder = tiny.classifier("qwen2", tmp_path)
    llm = LLM(str(folder), pooler_config={"pooling_type": "STEP", "returned_token_ids": [0, 7]})
    with pytest.raises(ConfigError, match="0 to 2"):
        llm.encode([20, 21], pooling_task="token_classify")


def test_a_file_job_does_as_the_pooler_says(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("good\n")
    vllm_cls.classify_file(
        str(bert), tmp_path / "in.txt", tmp_path / "out.jsonl", pooler_config={"use_activation": False}
    )
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row["logits"] == pytest.approx(LLM(str(bert)).classify("good")[0].outputs.logits, abs=1e-6)
    assert "probs" not in row


def test_a_head_of_nan_is_not_converted(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="classifier.weight holds NaN"):
        convert(str(folder), tmp_path / "out")


def test_one_bad_request_does_not_stop_the_others(bert: Path) -> None:
    async def run() -> None:
        async with AsyncLLM(str(bert)) as engine:
            for kwargs in ({"truncate_prompt_tokens": [1]}, "x", {1: 2, "a": 3}):
                with pytest.raises(ConfigError):
                    await asyncio.wait_for(engine.classify("a", tokenization_kwargs=kwargs), 30)  # type: ignore[arg-type]
            assert (await asyncio.wait_for(engine.classify("good"), 30)).error is None
            with pytest.raises(TypeError):
                await engine.classify("a", bogus=1)  # type: ignore[call-arg]

    asyncio.run(run())


def test_a_loop_that_closes_early_harms_no_other(bert: Path) -> None:
    engine = AsyncLLM(str(bert))

    async def leave() -> None:
        waiting = [asyncio.ensure_future(engine.classify("good " * 20)) for _ in range(20)]
        await asyncio.sleep(0)
        assert len(waiting) == 20

    asyncio.run(leave())
    assert asyncio.run(asyncio.wait_for(engine.classify("good"), 30)).error is None
    engine.close()


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "ernie"])
def test_mean_pooling_of_a_masked_lm_without_pooler(tmp_path: Path, name: str) -> None:
    config = tiny.config_of(name)
    model = tiny.randomize(transformers.AutoModelForMaskedLM.from_config(config))
    source = tiny.save(model, tiny._tokenizer(name), tmp_path / "mlm")
    report = convert(str(source), tmp_path / "out", head="fit", train=train_file(tmp_path), pooling="mean")
    assert report.format == "vcls"
    llm = LLM(str(tmp_path / "out"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    head = load_file(tmp_path / "out" / "model.safetensors")
    with torch.no_grad():
        hidden = model.base_model(**tokenizer("a good film", return_tensors="pt"))[0][0]
    expected = head["score.weight"] @ hidden.mean(0) + head["score.bias"]
    assert llm.classify("a good film")[0].outputs.logits == pytest.approx(expected.tolist(), abs=1e-3)


def test_bart_gets_a_new_head(tmp_path: Path) -> None:
    source = tiny.classifier("bart", tmp_path / "source")
    convert(str(source), tmp_path / "out", head="random", labels=["a", "b"])
    assert len(LLM(str(tmp_path / "out")).classify("good")[0].outputs.probs) == 2
    with pytest.raises(ModelError, match="encoder-decoder"):
        convert(str(source), tmp_path / "fit", head="fit", train=train_file(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foo": 1}, "no option 'foo'"),
        ({"seed": "x"}, "seed"),
        ({"label_tokens": "a=b"}, "belongs to --head tokens"),
        ({"train": "/nope"}, "belongs to --head fit"),
        ({"head_weights": "/nope"}, "belongs to --head file"),
        ({"bias": True}, "belongs to --head fit"),
        ({"max_shard_size": 0}, "max-shard-size"),
        ({"labels": ["a", " "]}, "not empty"),
        ({"max_model_len": "5"}, "whole number"),
    ],
)
def test_options_of_convert(qwen2: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"head": "random", "num_labels": 2, **options}
    with pytest.raises(ConfigError, match=message):
        convert(str(qwen2), tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_options_of_a_request(bert: Path) -> None:
    llm = LLM(str(bert))
    with pytest.raises(ConfigError, match="pooling_params"):
        llm.classify("a", pooling_params={"use_activation": False})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="use_activation='no'"):
        PoolingParams(use_activation="no")  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="prompt_token_ids cannot be str"):
        llm.classify({"prompt_token_ids": "hello"})
    with pytest.raises(ConfigError, match="no option 'foo'"):
        load_classifier(str(bert), foo=1)


@pytest.mark.parametrize("task", ["classify", "embed", "token_classify"])
def test_a_tensor_that_encode_gives_is_its_callers(bert: Path, task: str) -> None:
    (output,) = LLM(str(bert)).encode("a film", pooling_task=task)
    row: torch.Tensor = output.outputs.data
    row.mul_(2)
    assert not row.is_inference()
    (row.clone().requires_grad_() * 3).sum().backward()


@pytest.mark.parametrize(
    "option",
    [{"max_num_batched_tokens": 1.5}, {"num_threads": "2"}, {"max_num_seqs": True}, {"cuda_graphs": True}],
    ids=str,
)
def test_an_option_of_another_type_or_without_effect_is_refused(bert: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        LLM(str(bert), device="cpu", **option)
