"""Heads of every kind on prompts with images: what the model that reads them says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import vllm_cls
from vllm_cls import LLM

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
