"""Each token's logits equal those of transformers' own token classifiers, whatever shares the batch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

import vllm_cls
from vllm_cls import LLM, ConfigError, ModelError, load_classifier
from vllm_cls.runtime.runner import Mode

from ..models import tiny
from ..models.tokenizers import SENTENCES

WITHOUT_CLASS = ["opt", "qwen2_5_vl", "mamba"]  # transformers has no token classifier of these
NATIVE = [name for name in tiny.ARCHITECTURES if name not in (*WITHOUT_CLASS, "bart")]
CUT = {"truncate_prompt_tokens": -1}
AUTO: Any = transformers.AutoModelForTokenClassification


def prompts(name: str, longest: int) -> list[list[int]]:
    generator = random.Random(0)
    vocabulary = range(10, tiny.config_of(name).get_text_config().vocab_size)
    return [[generator.choice(vocabulary) for _ in range(length)] for length in (1, 2, 3, 5, 13, 34, longest)]


def logits_of(folder: Path, prompts: list[list[int]]) -> list[torch.Tensor]:
    model = AUTO.from_pretrained(folder).eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).logits[0] for ids in prompts]


def assert_equal(llm: LLM, given: list[list[int]], expected: list[torch.Tensor]) -> None:
    outputs = llm.encode(given, pooling_task="token_classify")
    for output, logits in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output.outputs.data, logits.softmax(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NATIVE)
def test_every_architecture_that_transformers_has(name: str, tmp_path: Path) -> None:
    folder = tiny.token_classifier(name, tmp_path)
    llm = LLM(str(folder), max_num_batched_tokens=96)
    described = llm.describe()
    assert described["task"] == "token_classify" and described["pooling"] == "ALL"
    assert described["execution"] == tiny.ARCHITECTURES[name].form, described["why_not_packed"]
    given = prompts(name, min(llm.max_model_len, tiny.LENGTH))
    expected = logits_of(folder, given)
    assert_equal(llm, given, expected)
    llm._open.engine.runner.mode = Mode("single")
    assert_equal(llm, given, expected)


@pytest.mark.parametrize("name", WITHOUT_CLASS)
def test_architectures_that_transformers_has_no_class_for(name: str, tmp_path: Path) -> None:
    source = tiny.causal_lm(name, tmp_path / "lm")
    vllm_cls.convert(str(source), tmp_path / "tokens", convert="token_classify", head="random", labels=["O", "X"])
    llm = LLM(str(tmp_path / "tokens"))
    assert llm.describe()["model_class"].endswith("ForTokenClassification")
    given = prompts(name, 40)
    assert_equal(llm, given, logits_of(tmp_path / "tokens", given))


def test_a_head_that_runs_only_in_its_own_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.token_classifier("bert", tmp_path)
    given = prompts("bert", 40)
    expected = logits_of(folder, given)
    architecture = type(LLM(str(folder))._open.classifier.architecture)
    for form, head in (("padded", None), ("padded", lambda states: states[:, :5])):
        monkeypatch.setattr(architecture, "head", lambda self, model, head=head: head)
        llm = LLM(str(folder))
        assert llm.describe()["execution"] == f"whole forward, {form}"
        assert_equal(llm, given, expected)
    monkeypatch.setattr(architecture, "head", lambda self, model: None)
    assert_equal(LLM(str(tiny.token_classifier("convbert", tmp_path / "c"))), given, logits_of(tmp_path / "c", given))


def test_a_token_classifier_does_not_classify_texts(tmp_path: Path) -> None:
    folder = str(tiny.token_classifier("qwen2", tmp_path))
    llm = LLM(folder)
    assert llm.encode([20, 21], pooling_task=None)[0].outputs.data.shape == (2, 5)
    with pytest.raises(ConfigError, match="token_classify"):
        llm.classify("a text")
    with pytest.raises(ConfigError, match="token_classify"):
        llm.encode("a text", pooling_task="embed")
    with pytest.raises(ModelError, match="classifies each token"):
        LLM(folder, convert="classify")
    with pytest.raises(ConfigError, match="every token"):
        LLM(folder, pooler_config={"pooling_type": "MEAN"})
    sequences = str(tiny.classifier("qwen2", tmp_path / "sequences"))
    with pytest.raises(ModelError, match="classifies whole texts"):
        LLM(sequences, convert="token_classify")


@pytest.mark.parametrize("name", ["bert", "electra", "gpt2", "qwen2", "roberta"])
def test_heads_that_are_made_open_in_plain_transformers(name: str, tmp_path: Path) -> None:
    source = tiny.base_model(name, tmp_path / "base")
    weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight, "bias": torch.tensor([0.0, 1.0, -1.0])}, tmp_path / "head.safetensors")
    for out, options in (
        ("random", {"head": "random", "num_labels": 3}),
        ("file", {"head": "file", "head_weights": str(tmp_path / "head.safetensors")}),
    ):
        report = vllm_cls.convert(str(source), tmp_path / out, convert="token_classify", **options)
        assert report.format == "transformers" and report.pooling == "ALL"
        given = prompts(name, 40)
        expected = logits_of(tmp_path / out, given)
        assert_equal(LLM(str(tmp_path / out)), given, expected)
        with torch.no_grad():
            model = load_classifier(str(tmp_path / out))
            torch.testing.assert_close(model(input_ids=torch.tensor(given[3:4])).logits[0], expected[3])
    with torch.no_grad():
        base = transformers.AutoModel.from_pretrained(source).eval()
        states = base(input_ids=torch.tensor(given[3:4]))[0][0]
    torch.testing.assert_close(expected[3], states @ weight.T + torch.tensor([0.0, 1.0, -1.0]), atol=1e-4, rtol=0)


def test_a_class_with_layers_before_its_last_is_not_given_a_linear_head(tmp_path: Path) -> None:
    source = tiny.base_model("modernbert", tmp_path / "base")
    save_file({"weight": torch.randn(3, 32)}, tmp_path / "head.safetensors")
    report = vllm_cls.convert(
        str(source),
        tmp_path / "out",
        convert="token_classify",
        head="file",
        head_weights=str(tmp_path / "head.safetensors"),
    )
    assert (report.format, report.model_class) == ("vcls", "VclsForTokenClassification")
    given = prompts("modernbert", 40)
    assert_equal(LLM(str(tmp_path / "out")), given, logits_of(tmp_path / "out", given))


def test_rows_of_an_output_layer_at_every_token(tmp_path: Path) -> None:
    source = tiny.causal_lm("qwen2", tmp_path / "lm")
    vllm_cls.convert(
        str(source), tmp_path / "out", convert="token_classify", head="tokens", label_tokens="sure=!,unsure=?"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    rows = [tokenizer.encode(text)[0] for text in ("!", "?")]
    given = prompts("qwen2", 40)
    with torch.no_grad():
        language_model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
        expected = [language_model(input_ids=torch.tensor([ids])).logits[0][:, rows] for ids in given]
    assert_equal(LLM(str(tmp_path / "out")), given, expected)
    at_load = LLM(
        str(source),
        convert="token_classify",
        hf_overrides={"classifier_from_token": [tokenizer.decode([row]) for row in rows]},
    )
    assert_equal(at_load, given, expected)


def test_an_existing_head_is_kept(tmp_path: Path) -> None:
    for name in ("bert", "qwen2"):
        source = tiny.token_classifier(name, tmp_path / name)
        report = vllm_cls.convert(str(source), tmp_path / f"{name}-copy")  # auto: what it is
        assert report.labels[1] == "B-PER" and report.head == "existing"
        given = prompts(name, 40)
        assert_equal(LLM(str(tmp_path / f"{name}-copy")), given, logits_of(source, given))


def test_from_sequences_to_tokens_and_back_needs_a_new_head(tmp_path: Path) -> None:
    tokens, sequences = (
        tiny.token_classifier("bert", tmp_path / "tokens"),
        tiny.classifier("bert", tmp_path / "sequences"),
    )
    with pytest.raises(ModelError, match="classifies whole texts"):
        vllm_cls.convert(str(sequences), tmp_path / "out", convert="token_classify")
    with pytest.raises(ModelError, match="classifies each token"):
        vllm_cls.convert(str(tokens), tmp_path / "out", convert="classify")
    made = vllm_cls.convert(str(sequences), tmp_path / "a", convert="token_classify", head="random", num_labels=2)
    assert made.model_class == "BertForTokenClassification"
    opt = vllm_cls.convert(
        str(tiny.causal_lm("opt", tmp_path / "opt")),
        tmp_path / "b",
        convert="token_classify",
        head="random",
        num_labels=2,
    )
    assert opt.model_class == "OPTForTokenClassification"
    vllm_cls.convert(str(tmp_path / "b"), tmp_path / "c", convert="classify", head="random", num_labels=2)
    assert LLM(str(tmp_path / "c")).describe()["pooling"] == "LAST"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "fit", "train": "rows.jsonl"}, "a label a text"),
        ({"head": "random", "num_labels": 2, "calibrate": "rows.jsonl"}, "a label a text"),
        ({"head": "random", "num_labels": 2, "prompt_template": "{text}!"}, "labels the text itself"),
        ({"head": "random", "num_labels": 2, "pooling": "mean"}, "every token"),
        ({}, "never invented"),
    ],
)
def test_what_a_token_classifier_cannot_have(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    source = tiny.base_model("bert", tmp_path / "base")
    with pytest.raises((ConfigError, ModelError), match=words):
        vllm_cls.convert(str(source), tmp_path / "out", convert="token_classify", **options)


def test_it_trains(tmp_path: Path) -> None:
    source = tiny.causal_lm("opt", tmp_path / "lm")
    vllm_cls.convert(str(source), tmp_path / "tokens", convert="token_classify", head="random", num_labels=3)
    model = AUTO.from_pretrained(tmp_path / "tokens")
    inputs = transformers.AutoTokenizer.from_pretrained(source)(SENTENCES[0], return_tensors="pt")
    labels = torch.arange(inputs["input_ids"].shape[1])[None] % 3
    before = model(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(before.logits[0], labels[0])
    torch.testing.assert_close(before.loss, expected)
    before.loss.backward()
    assert model.score.weight.grad.abs().sum() > 0
