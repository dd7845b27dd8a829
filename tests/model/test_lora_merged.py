"""LoRA adapters merged while a model is loaded, in jobs over files, and of token classifiers; PEFT is the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import vllm_cls
from vllm_cls import LLM, ConfigError, LoRARequest, ModelError

from ..models import tiny
from .test_lora import TARGETS, TEXTS, expected, ids, logits, train

peft = pytest.importorskip("peft")

TOKENS: Any = transformers.AutoModelForTokenClassification


@pytest.mark.parametrize("name", ["bert", "qwen2", "gpt2", "roberta", "deberta-v2"])
@pytest.mark.parametrize("num_labels", [3, 5])
def test_it_is_merged_with_its_head(name: str, num_labels: int, tmp_path: Path) -> None:
    base = tiny.classifier(name, tmp_path / "base")
    adapter = train(base, tmp_path / "adapter", TARGETS[name], num_labels, seed=1)
    with LLM(str(base), lora=str(adapter)) as llm:
        wanted = torch.stack(expected(base, adapter, num_labels, ids(llm)))
        torch.testing.assert_close(torch.stack(logits(llm, None)), wanted, atol=1e-4, rtol=1e-4)
        assert llm.num_labels == num_labels


def test_a_base_model_gets_the_adapters_head(tmp_path: Path) -> None:
    base = tiny.causal_lm("qwen2", tmp_path / "lm")
    adapter = train(base, tmp_path / "adapter", TARGETS["qwen2"], 3, seed=1)
    (adapter / "config.json").write_text(json.dumps({"id2label": {"0": "a", "1": "b", "2": "c"}}))
    with LLM(str(base), lora=str(adapter)) as llm:
        wanted = torch.stack(expected(base, adapter, 3, ids(llm)))
        torch.testing.assert_close(torch.stack(logits(llm, None)), wanted, atol=1e-4, rtol=1e-4)
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    vllm_cls.classify_file(str(base), tmp_path / "in.jsonl", tmp_path / "out.jsonl", lora=str(adapter))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, each in zip(rows, wanted, strict=True):
        assert row["probs"] == pytest.approx(each.softmax(-1).tolist(), abs=1e-5)
        assert row["label"] == "abc"[int(each.argmax())]


def test_pairs_are_scored_with_an_adapter(tmp_path: Path) -> None:
    base = tiny.classifier("bert", tmp_path / "base")
    adapter = train(base, tmp_path / "adapter", TARGETS["bert"], 1, seed=1)
    (tmp_path / "in.jsonl").write_text(json.dumps({"query": "good", "document": "The film"}))
    with pytest.raises(ConfigError, match="num_labels 1"):
        vllm_cls.score_file(str(base), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    vllm_cls.score_file(str(base), tmp_path / "in.jsonl", tmp_path / "out.jsonl", lora=str(adapter))
    row = json.loads((tmp_path / "out.jsonl").read_text())
    encoded = transformers.AutoTokenizer.from_pretrained(base)("good", "The film", return_tensors="pt")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, ignore_mismatched_sizes=True
    )
    with torch.no_grad():
        wanted = peft.PeftModel.from_pretrained(model, adapter).eval()(**encoded).logits[0].sigmoid()
    assert row["score"] == pytest.approx(wanted.item(), abs=1e-5)


def train_tokens(base: Path, folder: Path, num_labels: int) -> Path:
    model = TOKENS.from_pretrained(base, num_labels=num_labels, ignore_mismatched_sizes=True)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="TOKEN_CLS", r=4, target_modules=["query", "value"]))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["token classifier", "base model"])
def test_adapters_of_token_classifiers(kind: str, tmp_path: Path) -> None:
    make = tiny.token_classifier if kind == "token classifier" else tiny.base_model
    base = make("bert", tmp_path / "base")
    adapter = train_tokens(base, tmp_path / "adapter", 3)
    prompts = [[5, 6, 7, 8], [9], [10, 11]]
    model = TOKENS.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    with torch.no_grad():
        adapted = peft.PeftModel.from_pretrained(model, adapter).eval()
        wanted = [adapted(input_ids=torch.tensor([each])).logits[0].softmax(-1) for each in prompts]
    task = {"pooling_task": "token_classify"}
    vllm_cls.convert(str(base), tmp_path / "merged", lora=str(adapter))
    request = LoRARequest("tagger", 1, str(adapter))
    opened = [
        (LLM(str(base), lora=str(adapter)), None),
        (LLM(str(tmp_path / "merged")), None),
        (LLM(str(base), enable_lora=True, convert="token_classify"), request),
    ]
    for llm, asked in opened:
        assert llm.task == "token_classify"
        for output, each in zip(llm.encode(prompts, lora_request=asked, **task), wanted, strict=True):
            torch.testing.assert_close(output.outputs.data, each, atol=1e-4, rtol=0)
        spans = llm.token_classify("The film was good", lora_request=asked, aggregation_strategy="none")
        labels = [span.label for span in spans[0].outputs.spans]
        assert labels and set(labels) <= {"LABEL_0", "LABEL_1", "LABEL_2"}


def test_a_head_for_another_task_is_refused(tmp_path: Path) -> None:
    base = tiny.base_model("bert", tmp_path / "base")
    tokens = train_tokens(base, tmp_path / "tokens", 3)
    texts = train(base, tmp_path / "texts", TARGETS["bert"], 3, seed=1)
    for adapter, task in ((tokens, "classify"), (texts, "token_classify")):
        with pytest.raises(ModelError, match="brings a head that classifies"):
            LLM(str(base), lora=str(adapter), convert=task)
        with pytest.raises(ModelError, match="brings a head that classifies"):
            vllm_cls.convert(str(base), tmp_path / "out", lora=str(adapter), convert=task)
        request = LoRARequest("other", 1, str(adapter))
        llm = LLM(str(base), enable_lora=True, convert=task)
        with pytest.raises(ModelError, match="brings a head that classifies"):
            llm.encode([[5, 6]], lora_request=request, pooling_task=task)


@pytest.mark.parametrize("trained_on", ["more layers", "another family", "another vocabulary"])
def test_what_was_trained_on_another_model_is_refused(trained_on: str, tmp_path: Path) -> None:
    base = tiny.classifier("qwen2", tmp_path / "base")
    other, targets, options = base, TARGETS["qwen2"], {}
    if trained_on == "more layers":
        other = tiny.classifier("qwen2", tmp_path / "other", num_hidden_layers=5)
    if trained_on == "another family":
        other, targets = tiny.classifier("gpt2", tmp_path / "other"), TARGETS["gpt2"]
    if trained_on == "another vocabulary":
        options = {"modules_to_save": ["embed_tokens", "score"]}
    adapter = train(other, tmp_path / "adapter", targets, 3, seed=1, **options)
    if options:
        tensors = load_file(adapter / "adapter_model.safetensors")
        name = next(each for each in tensors if "embed_tokens" in each)
        longer = torch.cat([tensors[name], torch.zeros(3, 32)])
        save_file({**tensors, name: longer}, adapter / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="another model|the model's"):
        LLM(str(base), lora=str(adapter))


def of_a_language_model(base: Path, folder: Path, targets: list[str]) -> Path:
    """An adapter of the language model itself."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_label_tokens_of_an_output_layer_that_an_adapter_changes_are_refused(tied: bool, tmp_path: Path) -> None:
    base = tiny.causal_lm("qwen2", tmp_path / "lm", tie_word_embeddings=tied)
    options: dict[str, Any] = {
        "convert": "classify",
        "hf_overrides": {"classifier_from_token": ["a", "b"], "method": "from_2_way_softmax"},
    }
    changed = of_a_language_model(base, tmp_path / "changed", ["q_proj", "lm_head"])
    with pytest.raises(ConfigError, match="output layer's rows"):
        LLM(str(base), lora=str(changed), **options)
    left = of_a_language_model(base, tmp_path / "left", ["q_proj"])
    lm: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    merged = peft.PeftModel.from_pretrained(lm, left).merge_and_unload().eval()
    with LLM(str(base), lora=str(left), **options) as llm:
        (output,) = llm.classify("good")
        no, yes = (llm.get_tokenizer().convert_tokens_to_ids(each) for each in "ab")  # type: ignore[union-attr]
    wanted = merged(torch.tensor([output.prompt_token_ids])).logits[0, -1]
    assert output.outputs.logits == pytest.approx([float(wanted[yes] - wanted[no])], abs=1e-4)
    # a classifier has no output layer, so another head may stand on the rest of the adapter
    vllm_cls.convert(str(base), tmp_path / "out", lora=str(changed), head="random", num_labels=2)


@pytest.mark.parametrize(
    ("num_labels", "values"),
    [
        (3, {"problem_type": "multi_label_classification"}),
        (1, {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}),
    ],
)
def test_an_adapter_leaves_the_activation_of_the_model(num_labels: int, values: dict[str, str], tmp_path: Path) -> None:
    base = tiny.classifier("qwen2", tmp_path / "base", num_labels=num_labels, **values)
    adapter = train(base, tmp_path / "adapter", TARGETS["qwen2"], num_labels, seed=1)
    vllm_cls.convert(str(base), tmp_path / "out", lora=str(adapter))
    with LLM(str(base), enable_lora=True) as llm:
        wanted = llm.classify("good", lora_request=LoRARequest("a", 1, str(adapter)))[0].outputs.probs
    for opened in (LLM(str(base), lora=str(adapter)), LLM(str(tmp_path / "out"))):
        with opened as llm:
            assert llm.classify("good")[0].outputs.probs == pytest.approx(wanted, abs=1e-5)
    assert abs(sum(wanted) - 1) > 0.1
