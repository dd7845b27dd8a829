"""`vcls convert --lora`: what is written equals PEFT's own merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.models import tiny
from vllm_cls import LLM, ModelError, PoolingParams, convert
from vllm_cls.errors import ConfigError

peft = pytest.importorskip("peft")
TEXTS = ["The film was good", "a boring end", "What are the best practices?"]
TARGETS = {
    "bert": ["query", "value"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
}


def adapt(auto: Any, base: Path, folder: Path, task: str, targets: list[str], **options: Any) -> Any:
    """A random adapter, saved; and the model with it, merged by PEFT."""
    model = auto.from_pretrained(base, **options.pop("model", {}))
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(task_type=task, r=4, lora_alpha=6, target_modules=targets, **options)
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload().eval()


def classifier(base: Path, folder: Path, targets: list[str], num_labels: int, **options: Any) -> Any:
    auto = transformers.AutoModelForSequenceClassification
    options["model"] = {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    return adapt(auto, base, folder, "SEQ_CLS", targets, **options)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("num_labels", [3, 5])
def test_a_classifier_equals_merge_and_unload(name: str, num_labels: int, tmp_path: Path) -> None:
    base = tiny.classifier(name, tmp_path / "base")
    merged = classifier(base, tmp_path / "adapter", TARGETS[name], num_labels, use_rslora=True)
    report = convert(str(base), tmp_path / "out", lora=str(tmp_path / "adapter"))
    assert report.format == "transformers" and len(report.labels) == num_labels
    written, wanted = load_file(tmp_path / "out" / "model.safetensors"), merged.state_dict()
    assert set(written) == set(wanted)
    for key, tensor in written.items():
        torch.testing.assert_close(tensor, wanted[key].float(), atol=1e-5, rtol=0)
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    torch.testing.assert_close(opened(ids).logits, merged(ids).logits, atol=1e-5, rtol=0)


def test_a_model_without_a_head_takes_the_adapters_with_its_labels(tmp_path: Path) -> None:
    base = tiny.causal_lm("qwen2", tmp_path / "base")
    merged = classifier(base, tmp_path / "adapter", TARGETS["qwen2"], 2)
    (tmp_path / "adapter" / "config.json").write_text(json.dumps({"id2label": {"0": "no", "1": "yes"}}))
    report = convert(str(base), tmp_path / "out", lora=str(tmp_path / "adapter"))
    assert report.labels == ["no", "yes"] and report.head == "existing"
    assert "adapter" in (tmp_path / "out" / "README.md").read_text()
    with LLM(str(tmp_path / "out")) as llm:
        for output in llm.encode(TEXTS, PoolingParams(use_activation=False), pooling_task="classify"):
            wanted = merged(torch.tensor([output.prompt_token_ids])).logits[0]
            torch.testing.assert_close(output.outputs.data, wanted.detach(), atol=1e-4, rtol=0)


def test_a_head_is_fitted_on_the_merged_model(tmp_path: Path) -> None:
    base = tiny.causal_lm("qwen2", tmp_path / "base")
    merged = adapt(transformers.AutoModelForCausalLM, base, tmp_path / "adapter", "CAUSAL_LM", TARGETS["qwen2"])
    tiny.save(merged, transformers.AutoTokenizer.from_pretrained(base), tmp_path / "merged")
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS * 6, "ab" * 9, strict=True)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options: dict[str, Any] = {"head": "fit", "train": str(tmp_path / "train.jsonl"), "device": "cpu"}
    convert(str(base), tmp_path / "out", lora=str(tmp_path / "adapter"), **options)
    convert(str(tmp_path / "merged"), tmp_path / "wanted", **options)
    found, wanted = (load_file(tmp_path / each / "model.safetensors") for each in ("out", "wanted"))
    assert set(found) == set(wanted)
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[key], atol=1e-3, rtol=1e-3)


def test_a_part_of_the_backbone_that_was_trained_whole_is_taken(tmp_path: Path) -> None:
    base = tiny.causal_lm("qwen2", tmp_path / "base")
    options = {"modules_to_save": ["embed_tokens", "lm_head"]}
    merged = adapt(transformers.AutoModelForCausalLM, base, tmp_path / "adapter", "CAUSAL_LM", ["q_proj"], **options)
    convert(str(base), tmp_path / "out", lora=str(tmp_path / "adapter"), head="random", num_labels=2)
    written = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(written["model.embed_tokens.weight"], merged.model.embed_tokens.weight.data)
    with pytest.raises(ConfigError, match="output layer's rows"):
        tokens = {"head": "tokens", "label_tokens": "a=yes,b=no"}
        convert(str(base), tmp_path / "no", lora=str(tmp_path / "adapter"), **tokens)


def test_half_precision_stays_and_is_merged_in_float32(tmp_path: Path) -> None:
    base = tiny.classifier("bert", tmp_path / "base")
    classifier(base, tmp_path / "adapter", TARGETS["bert"], 3)
    convert(str(base), tmp_path / "wide", lora=str(tmp_path / "adapter"))
    convert(str(base), tmp_path / "half", lora=str(tmp_path / "adapter"), dtype="bfloat16")
    wide, half = (load_file(tmp_path / each / "model.safetensors") for each in ("wide", "half"))
    key = "bert.encoder.layer.0.attention.self.query.weight"
    assert half[key].dtype == torch.bfloat16 and torch.equal(half[key], wide[key].bfloat16())


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("peft_type", "LOHA", "LOHA adapter"),
        ("use_dora", True, "DoRA"),
        ("bias", "all", "biases"),
        ("init_lora_weights", "pissa", "pissa"),
    ],
)
def test_what_computes_otherwise_is_refused(setting: str, value: Any, said: str, tmp_path: Path) -> None:
    base = tiny.classifier("bert", tmp_path / "base")
    classifier(base, tmp_path / "adapter", TARGETS["bert"], 3)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), setting: value}))
    with pytest.raises(ModelError, match=said):
        convert(str(base), tmp_path / "out", lora=str(tmp_path / "adapter"))


def test_damaged_and_foreign_adapters_are_refused(tmp_path: Path) -> None:
    base = tiny.classifier("bert", tmp_path / "base")
    classifier(base, tmp_path / "adapter", TARGETS["bert"], 3)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    other = tiny.classifier("qwen2", tmp_path / "other")
    with pytest.raises(ModelError, match="does not have"):
        convert(str(other), tmp_path / "out", lora=str(tmp_path / "adapter"), head="existing")
    name = next(each for each in tensors if "lora_B" in each)
    for damage, said in ((torch.full_like(tensors[name], torch.nan), "NaN"), (tensors[name][:, :2], "do not fit")):
        save_file({**tensors, name: damage.contiguous()}, file)
        with pytest.raises(ModelError, match=said):
            convert(str(base), tmp_path / "out", lora=str(tmp_path / "adapter"))
    torch.save(tensors, tmp_path / "adapter" / "adapter_model.bin")
    file.unlink()
    with pytest.raises(ModelError, match="a pickle"):
        convert(str(base), tmp_path / "out", lora=str(tmp_path / "adapter"))
    convert(str(base), tmp_path / "out", lora=str(tmp_path / "adapter"), allow_pickle=True)
