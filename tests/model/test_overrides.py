"""`hf_overrides` of configs that hold others, and labels that have to be as many as a head's rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from vllm_cls import LLM, ConfigError, ModelError, convert

from ..models import tiny

TEXT = "The film was good"


def logits(folder: Path, **overrides: Any) -> list[float]:
    with LLM(str(folder), hf_overrides=overrides) as llm:
        return llm.classify(TEXT)[0].outputs.logits


def biased(folder: Path, count: int = 3) -> Path:
    """A conversion in our own format."""
    source = tiny.causal_lm("qwen2", folder / "lm")
    save_file({"weight": torch.randn(count, 32), "bias": torch.randn(count)}, folder / "head.safetensors")
    report = convert(str(source), folder / "own", head="file", head_weights=str(folder / "head.safetensors"))
    assert report.format == "vcls"
    return folder / "own"


@pytest.mark.parametrize("override", [{"is_causal": False}, {"rms_norm_eps": 0.5}])
def test_fields_of_the_backbone_reach_it(override: dict[str, Any], tmp_path: Path) -> None:
    own = biased(tmp_path)
    assert logits(own, **override) != pytest.approx(logits(own), abs=1e-2)


def test_fields_of_a_config_inside(tmp_path: Path) -> None:
    source = tiny.causal_lm("qwen2_5_vl", tmp_path / "lm")
    convert(str(source), tmp_path / "out", head="random", num_labels=2)
    changed = logits(tmp_path / "out", text_config={"rms_norm_eps": 0.5})
    assert changed != pytest.approx(logits(tmp_path / "out"), abs=1e-2)


def test_labels_are_as_many_as_the_rows_of_a_head_of_our_own_format(tmp_path: Path) -> None:
    own = biased(tmp_path)
    label_tokens = "bad= very bad,fine= quite good,good= good"
    convert(str(tmp_path / "lm"), tmp_path / "texts", head="sequence", label_tokens=label_tokens)
    for folder in (own, tmp_path / "texts"):
        with pytest.raises(ModelError, match="3 rows, but there are 2 labels"):
            convert(str(folder), tmp_path / "out", labels=["a", "b"])
        with pytest.raises(ModelError, match="3 rows, but there are 2 labels"):
            LLM(str(folder), hf_overrides={"num_labels": 2})
        convert(str(folder), tmp_path / "out", labels=["a", "b", "c"], overwrite=True)
        with LLM(str(tmp_path / "out")) as llm:
            assert llm.classify(TEXT)[0].outputs.label in ("a", "b", "c")


def test_heads_with_names_have_labels_of_their_own(tmp_path: Path) -> None:
    source = tiny.causal_lm("qwen2", tmp_path / "lm")
    convert(str(source), tmp_path / "one", head="random", labels=["a", "b"], head_name="x")
    for override in ({"id2label": {0: "c", 1: "d"}}, {"problem_type": "multi_label_classification"}):
        with pytest.raises(ConfigError, match="several with names"):
            LLM(str(tmp_path / "one"), hf_overrides=override)


def edited(folder: Path, **values: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


def plain_logits(folder: Path) -> list[float]:
    """transformers' own."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(TEXT, return_tensors="pt")).logits[0].tolist()


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification", None])
def test_one_label_that_says_it_excludes_others(problem_type: str | None, tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "one", num_labels=1)
    (logit,) = plain_logits(folder)
    edited(folder, problem_type="single_label_classification")
    with pytest.raises(ModelError, match=r"one label, and problem_type .* hf_overrides=.* \(--hf-overrides\)"):
        LLM(str(folder))
    expected = logit if problem_type == "regression" else torch.tensor(logit).sigmoid().item()
    overrides = {"problem_type": problem_type}
    convert(str(folder), tmp_path / "out", hf_overrides=overrides)
    for path, options in ((folder, overrides), (tmp_path / "out", {})):
        with LLM(str(path), hf_overrides=options) as llm:
            assert llm.classify(TEXT)[0].outputs.probs == pytest.approx([expected], abs=1e-5)
            assert llm.problem_type == problem_type
    assert plain_logits(tmp_path / "out") == pytest.approx([logit], abs=1e-5)


def test_as_many_labels_as_there_are_mend_it_too(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path, num_labels=2, problem_type="single_label_classification")
    expected = plain_logits(folder)
    edited(folder, id2label={"0": "only"}, label2id={"only": 0})
    for overrides in ({"num_labels": 2}, {"id2label": {"0": "no", "1": "yes"}}):
        assert logits(folder, **overrides) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("bert", {"hidden_size": "32"}, {"hidden_size": 32}),
        ("bert", {"id2label": ["a", "b", "c"]}, {"id2label": {"0": "a", "1": "b", "2": "c"}}),
        ("bert", {"id2label": {"a": 1}}, {"id2label": {"0": "a", "1": "b", "2": "c"}}),
        ("bert", {"dtype": "float33"}, {"dtype": "float32"}),
        ("bert", {"torch_dtype": "float33"}, {"dtype": "float32"}),
        ("bert", {"problem_type": 3}, {"problem_type": None}),
        ("qwen2", {"layer_types": ["full_attention"]}, {"layer_types": ["full_attention"] * 3}),
        ("qwen2", {"layer_types": ["none"] * 3}, {"layer_types": ["full_attention"] * 3}),
        ("qwen2", {"pad_token_id": "x"}, {"pad_token_id": 1}),
    ],
)
def test_a_value_that_transformers_refuses_can_be_replaced(
    name: str, wrong: dict[str, Any], right: dict[str, Any], tmp_path: Path
) -> None:
    folder = tiny.classifier(name, tmp_path)
    expected = plain_logits(folder)
    edited(folder, **wrong)
    assert logits(folder, **right) == pytest.approx(expected, abs=1e-4)


def test_two_values_that_belong_together(tmp_path: Path) -> None:
    """Either alone contradicts the other one of config.json."""
    folder = tiny.classifier("qwen2", tmp_path, num_hidden_layers=2, layer_types=["full_attention"] * 2)
    expected = plain_logits(folder)
    edited(folder, num_hidden_layers=3, layer_types=["full_attention"] * 3)
    assert logits(folder, num_hidden_layers=2, layer_types=["full_attention"] * 2) == pytest.approx(expected, abs=1e-4)


def test_a_value_of_a_config_inside_that_is_refused(tmp_path: Path) -> None:
    own = biased(tmp_path)
    expected = logits(own)
    raw = json.loads((own / "config.json").read_text())
    edited(own, backbone_config={**raw["backbone_config"], "layer_types": ["none"] * 3})
    assert logits(own, layer_types=["full_attention"] * 3) == pytest.approx(expected, abs=1e-5)


def test_a_name_that_means_nothing_is_still_told(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path, num_labels=1)
    edited(folder, problem_type="single_label_classification")
    with pytest.warns(UserWarning, match="no 'problem_typ'.*Did you mean 'problem_type'"):
        logits(folder, problem_type="regression", problem_typ="regression")


def test_a_value_that_is_none_of_json(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path)
    assert logits(folder, dtype=torch.float32) == pytest.approx(plain_logits(folder), abs=1e-5)
