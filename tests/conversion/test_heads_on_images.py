"""Heads of every kind on prompts with images: what the model that reads them says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

import vllm_cls
from vllm_cls import LLM
from vllm_cls.cli.main import vcls

from ..end_to_end.test_images import PROMPTS, inputs_of
from ..models import vision

NAMES = ["text", "one image", "three images", "video", "interleaved"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision.qwen2_5_vl(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def language_model(source: Path) -> Any:
    return transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()


def logits(folder: Path, prompts: list[Any]) -> torch.Tensor:
    with LLM(str(folder), dtype="float32") as llm:
        return torch.tensor([output.outputs.logits for output in llm.classify(prompts)])


def next_token_logits(model: Any, source: Path, prompt: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs_of(prompt, source)).logits[0, -1]


def test_label_tokens(source: Path, language_model: Any, tmp_path: Path) -> None:
    labels = "neg= bad| boring,pos= good"
    vllm_cls.convert(str(source), tmp_path / "tokens", head="tokens", label_tokens=labels)
    vllm_cls.convert(str(source), tmp_path / "two", head="two-way", label_tokens="neg= bad,pos= good")
    ids = vision.tokenizer().convert_tokens_to_ids(["Ġbad", "Ġboring", "Ġgood"])
    said = torch.stack([next_token_logits(language_model, source, PROMPTS[name])[ids] for name in NAMES])
    prompts = [PROMPTS[name] for name in NAMES]
    expected = torch.stack([said[:, :2].mean(dim=1), said[:, 2]], dim=1)
    torch.testing.assert_close(logits(tmp_path / "tokens", prompts), expected, atol=1e-4, rtol=0)
    with LLM(str(tmp_path / "two"), dtype="float32") as llm:
        found = torch.tensor([output.outputs.probs[0] for output in llm.classify(prompts)])
    torch.testing.assert_close(found, said[:, [0, 2]].softmax(-1)[:, 1], atol=1e-5, rtol=0)


def test_label_texts_of_several_tokens(source: Path, language_model: Any, tmp_path: Path) -> None:
    """Each token of a label's text, behind the prompt and its images, by the model's own forward."""
    texts = {"neg": " bad acting", "pos": " good music was great"}
    labels = ",".join(f"{name}={text}" for name, text in texts.items())
    vllm_cls.convert(str(source), tmp_path / "out", head="sequence", label_tokens=labels)
    expected = []
    for name in NAMES:
        given = inputs_of(PROMPTS[name], source)
        length = given["input_ids"].shape[1]
        row = []
        for text in texts.values():
            behind = torch.tensor([vision.tokenizer()(text).input_ids])
            whole = {**given, "input_ids": torch.cat([given["input_ids"], behind], dim=1)}
            if "mm_token_type_ids" in given:
                whole["mm_token_type_ids"] = torch.cat([given["mm_token_type_ids"], torch.zeros_like(behind)], dim=1)
            with torch.no_grad():
                said = language_model(**whole).logits[0, length - 1 : -1].log_softmax(-1)
            row.append(said.gather(1, behind.T).sum())
        expected.append(torch.stack(row))
    found = logits(tmp_path / "out", [PROMPTS[name] for name in NAMES])
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=0)


def test_a_head_of_a_file_and_the_one_that_is_there(source: Path, tmp_path: Path) -> None:
    weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight}, tmp_path / "head.safetensors")
    vllm_cls.convert(
        str(source),
        tmp_path / "file",
        head="file",
        head_weights=str(tmp_path / "head.safetensors"),
        labels=["a", "b", "c"],
    )
    vllm_cls.convert(str(tmp_path / "file"), tmp_path / "again")
    model = transformers.Qwen2_5_VLModel.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = torch.stack([model(**inputs_of(PROMPTS[name], source))[0][0, -1] for name in NAMES]) @ weight.T
    for name in ("file", "again"):
        found = logits(tmp_path / name, [PROMPTS[each] for each in NAMES])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", ["model.visual", "visual"])
def test_both_layouts_of_checkpoints_keep_the_tower(source: Path, layout: str, tmp_path: Path) -> None:
    """transformers 4 wrote `visual` and `model` beside each other, transformers 5 both within `model`."""
    folder = tmp_path / "lm"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    assert any(name.startswith(("model.visual.", "visual.")) for name in tensors)

    def renamed(name: str) -> str:
        inner = name.removeprefix("model.").removeprefix("language_model.")
        if inner.startswith("visual.") or name.startswith("lm_head"):
            return name if name.startswith("lm_head") else layout.removesuffix("visual") + inner
        return f"model.language_model.{inner}" if layout == "model.visual" else f"model.{inner}"

    save_file(
        {renamed(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    vllm_cls.convert(str(folder), tmp_path / "out", head="random", num_labels=3, seed=0)
    vllm_cls.convert(str(source), tmp_path / "plain", head="random", num_labels=3, seed=0)
    prompts = [PROMPTS[name] for name in NAMES]
    torch.testing.assert_close(logits(tmp_path / "out", prompts), logits(tmp_path / "plain", prompts))
    tokens = {"classifier_from_token": ["Ġbad", "Ġgood"], "method": "no_post_processing"}
    rows = []
    for lm in (folder, source):  # and opened as they are
        with LLM(str(lm), dtype="float32", convert="classify", hf_overrides=tokens) as llm:
            rows.append([output.outputs.logits for output in llm.classify(prompts)])
    torch.testing.assert_close(torch.tensor(rows[0]), torch.tensor(rows[1]))


# -- a head fitted on images ---------------------------------------------------------------------------


def test_digits_drawn_as_images_are_told_apart(tmp_path: Path) -> None:
    """scikit-learn's digits, a random model that reads them, LAST pooling and a fitted head; chance is 0.1."""
    source = vision.qwen2_5_vl(tmp_path / "lm")
    digits = load_digits()
    rows = []
    for index in np.random.default_rng(0).permutation(len(digits.target))[:500].tolist():
        file = tmp_path / f"{index}.png"
        grey = Image.fromarray((digits.images[index] / 16 * 255).astype(np.uint8))
        grey.resize((32, 32), Image.Resampling.NEAREST).convert("RGB").save(file)
        rows.append(json.dumps({"image": file.name, "text": "0 1 2 3 ?", "label": str(digits.target[index])}))
    (tmp_path / "train.jsonl").write_text("\n".join(rows[:400]))
    (tmp_path / "test.jsonl").write_text("\n".join(rows[400:]))
    made = CliRunner().invoke(
        vcls,
        ["convert", str(source), str(tmp_path / "out"), "--convert", "classify", "--head", "fit", "--device", "cpu"]
        + ["--train", str(tmp_path / "train.jsonl"), "--image-field", "image", "--label-field", "label"],
    )
    assert made.exit_code == 0, made.output
    vllm_cls.classify_file(
        str(tmp_path / "out"), str(tmp_path / "test.jsonl"), str(tmp_path / "found.jsonl"), image_field="image"
    )
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    right = [json.loads(row)["label"] == each["label"] for row, each in zip(rows[400:], found, strict=True)]
    assert sum(right) / len(right) >= 0.5
