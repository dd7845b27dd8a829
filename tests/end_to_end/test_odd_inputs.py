"""What a sceptical user gives: odd labels, options without meaning, empty texts, adapters of every form."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder

import vllm_cls
from vllm_cls import LLM, ConfigError, LoRARequest, ModelError, PoolingParams, PromptError

from ..model.test_lora import expected, ids, logits, train
from ..models import tiny


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.classifier("bert", tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize(
    "labels", [{"0": "a", "2": "b", "3": "c"}, {"1": "a", "2": "b", "3": "c"}, {"0": "a", "1": "a"}]
)
def test_labels_that_are_not_those_of_the_outputs(labels: dict[str, str], tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model", num_labels=len(labels))
    config = json.loads((folder / "config.json").read_text())
    config.pop("label2id", None)
    (folder / "config.json").write_text(json.dumps({**config, "id2label": labels}))
    with pytest.raises(ModelError, match="id2label"):
        LLM(str(folder))
    with pytest.raises(ModelError, match="id2label"):
        vllm_cls.convert(str(folder), tmp_path / "out")
    corrected = {"id2label": {index: str(index) for index in range(len(labels))}}
    assert LLM(str(folder), hf_overrides=corrected).id2label == corrected["id2label"]


def test_a_config_without_labels(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model", num_labels=2)
    config = json.loads((folder / "config.json").read_text())
    for name in ("id2label", "label2id", "num_labels"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config))
    assert LLM(str(folder)).id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_labels_with_commas_and_quotes(bert: Path, tmp_path: Path) -> None:
    labels = ['good, "really"', "bad;\n", "中"]
    vllm_cls.convert(str(bert), tmp_path / "out", labels=labels)
    (tmp_path / "in.csv").write_text('text\n" leading, space"\n')
    vllm_cls.classify_file(str(tmp_path / "out"), tmp_path / "in.csv", tmp_path / "out.csv", scores=True, top_k=1)
    with (tmp_path / "out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["text"] == " leading, space" and row["label"] in labels
    assert list(json.loads(row["scores"])) == labels and json.loads(row["top_k"])[0]["label"] == row["label"]


def test_options_without_meaning_are_refused_or_told(bert: Path, tmp_path: Path) -> None:
    llm = LLM(str(bert))
    for params in (PoolingParams(step_tag_id=5), PoolingParams(returned_token_ids=[0])):
        with pytest.raises(ConfigError, match="STEP"):
            llm.classify("good", pooling_params=params)
        with pytest.raises(ConfigError, match="STEP"):
            llm.encode("good", params, pooling_task="token_classify")
    with pytest.raises(ConfigError, match=r"LLM\.score"):
        llm.classify("good", pooling_params=PoolingParams(extra_kwargs={"max_tokens_per_doc": 3}))
    with pytest.raises(ConfigError, match="STEP"):
        LLM(str(bert), pooler_config={"step_tag_id": 5})
    with pytest.warns(UserWarning, match="no 'num_lables'.*num_labels"):
        LLM(str(bert), hf_overrides={"num_lables": 3})
    (tmp_path / "in.jsonl").write_text('{"text": "good"}')
    with pytest.raises(ConfigError, match=r"threshold=0\.9"):
        vllm_cls.classify_file(llm, tmp_path / "in.jsonl", tmp_path / "out.jsonl", threshold=0.9)


def test_empty_and_long_texts_of_pairs(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path, num_labels=1)
    reference = CrossEncoder(str(folder), max_length=tiny.LENGTH)
    long = "The film was good and the music was great. " * 20
    pairs = [("", "good"), ("good", ""), (" ", " "), ("good", long), (long, "good"), (long, long), ("😀", "🪿")]
    llm = LLM(str(folder))
    found = llm.score(*zip(*pairs, strict=True), tokenization_kwargs={"truncate_prompt_tokens": -1})  # type: ignore[misc]
    assert [each.outputs.score for each in found] == pytest.approx(reference.predict(pairs).tolist(), abs=1e-4)
    assert [each.truncated for each in found] == [False, False, False, True, True, True, False]
    with pytest.raises(PromptError, match="maximum context length"):
        llm.score("good", long)
    templated = LLM(str(folder), score_template="Q: {{ query }} D: {{ document }} A:")
    with pytest.raises(PromptError, match="no room for the document"):
        templated.score(long, "good", tokenization_kwargs={"truncate_prompt_tokens": -1})


FORMS: dict[str, dict[str, Any]] = {
    "ranks": {"rank_pattern": {"q_proj": 2, "mlp.down_proj": 8}, "alpha_pattern": {"v_proj": 3}},
    "all linear": {"targets": "all-linear"},
    "some layers": {"layers_to_transform": [0, 2]},
    "not one": {"exclude_modules": ["model.layers.1.self_attn.q_proj"]},
    "rslora": {"use_rslora": True, "rank_pattern": {"up_proj": 1}},
    "pattern": {"targets": r".*\.(0|1)\.self_attn\.(k|v)_proj"},
    "half": {},
}


def test_every_form_of_adapter(tmp_path: Path) -> None:
    base = tiny.classifier("qwen2", tmp_path / "base")
    llm = LLM(str(base), enable_lora=True)
    for number, (name, options) in enumerate(FORMS.items(), start=1):
        options = dict(options)
        targets = options.pop("targets", ["q_proj", "v_proj", "up_proj", "down_proj"])
        folder = train(base, tmp_path / name, targets, 2 + number % 2, seed=number, **options)
        if name == "half":
            tensors = load_file(folder / "adapter_model.safetensors")
            rounded = {key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}
            save_file(rounded, folder / "adapter_model.safetensors", {"format": "pt"})
        wanted = expected(base, folder, 2 + number % 2, ids(llm))
        found = logits(llm, LoRARequest(name, number, str(folder)))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        merged = LLM(str(base), lora=str(folder))
        torch.testing.assert_close(logits(merged, None), wanted, atol=1e-4, rtol=1e-4)
