"""`hf_overrides` of configs that hold others, and labels that have to be as many as a head's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vllm_cls import LLM, ConfigError, ModelError, convert

from .models import tiny

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
