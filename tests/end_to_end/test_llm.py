"""`LLM`, `AsyncLLM`, `load_classifier` and the Auto classes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from vllm_cls import LLM, AsyncLLM, ConfigError, PoolingParams, PromptError, convert, load_classifier

from ..models import tiny

TEXTS = ["The film was good", "a boring end", "yes"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.classifier("bert", tmp_path_factory.mktemp("bert"), id2label={0: "a", 1: "b", 2: "c"})


@pytest.fixture(scope="module")
def llm(bert: Path) -> LLM:
    return LLM(str(bert))


def test_outputs(llm: LLM) -> None:
    outputs = llm.classify(TEXTS)
    assert [int(output.request_id) for output in outputs] == sorted(int(output.request_id) for output in outputs)
    for output in outputs:
        assert output.finished and output.error is None and output.num_cached_tokens == 0
        assert sum(output.outputs.probs) == pytest.approx(1)
        assert output.outputs.num_classes == 3
        assert output.outputs.label == max(output.outputs.scores, key=lambda label: output.outputs.scores[label])
    assert llm.num_labels == 3 and llm.id2label == {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize(
    "prompts",
    [
        "good",
        ["good"],
        {"prompt": "good"},
        [{"prompt": "good"}],
        ("good" for _ in range(1)),
    ],
)
def test_every_way_to_write_one_text(llm: LLM, prompts: Any) -> None:
    (output,) = llm.classify(prompts)
    assert output.outputs == llm.classify(["good"])[0].outputs


def test_token_ids_are_taken_as_they_are(llm: LLM) -> None:
    ids = llm.classify("good")[0].prompt_token_ids
    for prompts in (ids, [ids], {"prompt_token_ids": ids}, [{"prompt_token_ids": ids}]):
        (output,) = llm.classify(prompts)
        assert output.outputs == llm.classify("good")[0].outputs


def test_encode(llm: LLM) -> None:
    (output,) = llm.encode("good", pooling_task="classify")
    assert output.outputs.data.tolist() == pytest.approx(llm.classify("good")[0].outputs.probs)
    (unit,) = llm.encode("good", pooling_task="embed")
    assert float(unit.outputs.data.norm()) == pytest.approx(1)
    (raw,) = llm.encode("good", PoolingParams(use_activation=False), pooling_task="embed")
    assert torch.allclose(raw.outputs.data / raw.outputs.data.norm(), unit.outputs.data, atol=1e-6)
    with pytest.raises(ConfigError, match="pooling_task=None"):
        llm.encode("good")


def test_a_base_model_gives_embeddings_only_when_asked(tmp_path: Path) -> None:
    folder = tiny.base_model("qwen2", tmp_path)
    llm = LLM(str(folder), convert="none")
    (output,) = llm.encode("good", pooling_task="embed")
    assert output.outputs.data.shape == (32,)
    with pytest.raises(ConfigError, match="no head"):
        llm.classify("good")


def test_score(tmp_path: Path) -> None:
    llm = LLM(str(tiny.classifier("bert", tmp_path, num_labels=1)))
    one_to_many = llm.score("good film", ["bad music", "great end"])
    many = llm.score(["good film", "good film"], ["bad music", "great end"])
    assert [each.outputs.score for each in one_to_many] == [each.outputs.score for each in many]
    direct = llm.classify([("good film", "bad music")])[0].outputs
    assert one_to_many[0].outputs.score == pytest.approx(direct.probs[0], abs=1e-6)  # other batches, other roundings
    assert direct.label is None
    with pytest.raises(ConfigError, match="got 2 and 3"):
        llm.score(["a", "b"], ["a", "b", "c"])


def test_score_needs_one_label(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="num_labels 1; this one has 3"):
        llm.score("a", "b")


def test_overrides(bert: Path) -> None:
    overrides = {
        "id2label": {0: "x", 1: "y", 2: "z"},
        "problem_type": "multi_label_classification",
        "head_dtype": "model",
    }
    llm = LLM(str(bert), hf_overrides=overrides)
    (output,) = llm.classify("good")
    assert set(output.outputs.scores) == {"x", "y", "z"}
    assert output.outputs.probs == pytest.approx(torch.tensor(output.outputs.logits).sigmoid().tolist())
    with pytest.raises(ConfigError, match="num_labels=2 but id2label has 3"):
        LLM(str(bert), hf_overrides={"num_labels": 2, "id2label": {0: "x", 1: "y", 2: "z"}})
    with pytest.raises(ConfigError, match="head_dtype='float31'"):
        LLM(str(bert), hf_overrides={"head_dtype": "float31"})


def test_use_sep_token(bert: Path) -> None:
    joined = LLM(str(bert), hf_overrides={"use_sep_token": False})
    assert joined.classify([("good ", "film")])[0].outputs == joined.classify("good film")[0].outputs
    apart = LLM(str(bert))
    assert apart.classify([("good ", "film")])[0].outputs != apart.classify("good film")[0].outputs


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_the_head_in_float32(bert: Path, dtype: str) -> None:
    llm = LLM(str(bert), dtype=dtype)
    expected = LLM(str(bert)).classify(TEXTS)
    model: Any = llm.model
    assert model.classifier.weight.dtype == torch.float32 and str(model.bert.dtype) == f"torch.{dtype}"
    for output, other in zip(llm.classify(TEXTS), expected, strict=True):
        assert output.outputs.probs == pytest.approx(other.outputs.probs, abs=0.05)


def test_it_closes(bert: Path) -> None:
    with LLM(str(bert)) as llm:
        llm.classify("good")
    with pytest.raises(ConfigError, match="closed"):
        llm.classify("good")


def test_no_prompt(llm: LLM) -> None:
    for prompts in ([], [[]], ()):
        with pytest.raises(PromptError):
            llm.classify(prompts)


def test_params_one_a_prompt(llm: LLM) -> None:
    with pytest.raises(ConfigError, match=r"prompts \(2\) and params \(1\)"):
        llm.classify(["a", "b"], pooling_params=[PoolingParams()])


def test_async(bert: Path, llm: LLM) -> None:
    async def run() -> None:
        async with AsyncLLM(str(bert)) as engine:
            outputs = await asyncio.gather(*[engine.classify(text) for text in TEXTS * 5])
            for output, text in zip(outputs, TEXTS * 5, strict=True):
                assert output.outputs.probs == pytest.approx(llm.classify(text)[0].outputs.probs, abs=1e-6)
            good, bad, encoded = await asyncio.gather(
                engine.classify("good"),
                engine.classify([10**6]),
                engine.encode("good", pooling_task="embed"),
                return_exceptions=True,
            )
            assert good.outputs == llm.classify("good")[0].outputs
            assert isinstance(bad, PromptError)
            assert encoded.outputs.data.shape == (32,)
            with pytest.raises(ConfigError, match="num_labels 1"):
                await engine.score("a", "b")
        with pytest.raises(ConfigError, match="closed"):
            await engine.classify("good")

    asyncio.run(run())


def test_async_requests_share_batches(bert: Path) -> None:
    async def run() -> int:
        async with AsyncLLM(str(bert)) as engine:
            before = engine.llm.counters.num_forwards
            await asyncio.gather(*[engine.classify([20 + i, 21]) for i in range(40)])
            return engine.llm.counters.num_forwards - before

    assert asyncio.run(run()) < 20


@pytest.mark.parametrize("name", ["qwen2", "mamba", "gemma2", "bert"])
def test_a_converted_model_trains_with_the_trainer(tmp_path: Path, name: str) -> None:
    if name == "bert":
        folder = tiny.classifier(name, tmp_path / "out", num_labels=2)
    else:
        source = tiny.causal_lm(name, tmp_path / "lm")
        convert(str(source), tmp_path / "out", head="tokens", label_tokens="n= bad,p= good")
        folder = tmp_path / "out"
    model = load_classifier(str(folder))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    data = [{**tokenizer(text), "labels": label} for text, label in (("good film", 1), ("a boring end", 0))] * 8
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=16, per_device_train_batch_size=4, learning_rate=5e-3,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    collator = transformers.DataCollatorWithPadding(tokenizer)
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator)
    before = trainer.evaluate(data)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(data)["eval_loss"] < before * 0.7
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    outputs = LLM(str(tmp_path / "trained")).classify(["good film", "a boring end"])
    with torch.no_grad():
        for text, output in zip(["good film", "a boring end"], outputs, strict=True):
            logits = model.eval()(**tokenizer(text, return_tensors="pt")).logits[0]
            assert output.outputs.logits == pytest.approx(logits.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "order", ["vllm_cls, transformers", "transformers, vllm_cls", "vllm_cls, transformers.models.auto"]
)
def test_auto_classes_in_both_orders_of_import(tmp_path: Path, order: str) -> None:
    folders = []
    for name in ("mamba", "gemma2", "qwen2_5_vl", "qwen2"):
        source = tiny.causal_lm(name, tmp_path / f"{name}-lm")
        convert(str(source), tmp_path / name, head="tokens", label_tokens="n= bad,p= good")
        folders.append(str(tmp_path / name))
    code = (
        f"import {order}\n"
        "import sys, torch, transformers\n"
        "if 'transformers,' not in sys.argv[1]: transformers.AutoModelForSequenceClassification\n"
        "for folder in sys.argv[2:]:\n"
        "    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)\n"
        "    assert not info['missing_keys'] and not info['unexpected_keys'], info\n"
        "    assert model(input_ids=torch.tensor([[20, 21]])).logits.shape == (1, 2)\n"
        "assert transformers.AutoModelForSequenceClassification.from_config(transformers.BertConfig()) is not None\n"
    )
    done = subprocess.run([sys.executable, "-c", code, order, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_plain_transformers_refuses_what_it_would_lose(tmp_path: Path) -> None:
    source = tiny.causal_lm("gemma2", tmp_path / "lm")
    convert(str(source), tmp_path / "out", head="tokens", label_tokens="n= bad,p= good")
    code = "import sys, transformers; transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode != 0
    assert "vcls" in done.stderr
