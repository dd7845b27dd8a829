"""Checkpoints that bring code of their own: which class runs, and what a conversion of them needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from vllm_cls import LLM, ModelError, convert

from .models import tiny

CODE = """
from transformers import BertConfig, BertForSequenceClassification, BertModel


class OwnConfig(BertConfig):
    model_type = "{model_type}"


class OwnModel(BertModel):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = 2 * output.last_hidden_state
        return output


class OwnForSequenceClassification(BertForSequenceClassification):
    config_class = OwnConfig
"""


def edit(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def with_code(folder: Path, model_type: str, architecture: str = "OwnModel", **autos: str) -> Path:
    """A BERT whose states are twice as large, by code of its own."""
    (folder / "own.py").write_text(CODE.replace("{model_type}", model_type))
    autos = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel", **autos}
    edit(folder, model_type=model_type, auto_map=autos, architectures=[architecture])
    return folder


def states(folder: Path, token_ids: list[int], **options: Any) -> torch.Tensor:
    """`(num_tokens, hidden)` of transformers."""
    model = transformers.AutoModel.from_pretrained(folder, **options).eval()
    with torch.no_grad():
        return model(torch.tensor([token_ids]))[0][0]


@pytest.mark.parametrize("model_type", ["bert", "unheard_of_by_transformers"])
def test_an_embedder_of_its_own_code(model_type: str, tmp_path: Path) -> None:
    folder = with_code(tiny.base_model("bert", tmp_path / "model"), model_type)
    with pytest.raises(ModelError, match="needs code of its own.*OwnModel.*--trust-remote-code"):
        LLM(str(folder), convert="none")
    with LLM(str(folder), convert="none", trust_remote_code=True) as llm:
        (output,) = llm.embed("The film was good")
        assert llm.describe()["execution"] == "packed"
    first = states(folder, output.prompt_token_ids, trust_remote_code=True)[0]
    wanted = torch.nn.functional.normalize(first, dim=0)
    torch.testing.assert_close(torch.tensor(output.outputs.embedding), wanted, atol=1e-5, rtol=0)


def test_a_class_of_transformers_by_name_in_place_of_code(tmp_path: Path) -> None:
    folder = with_code(tiny.base_model("bert", tmp_path / "model"), "bert")
    named = {"architectures": ["BertModel"]}
    with LLM(str(folder), convert="none", hf_overrides=named, pooler_config={"use_activation": False}) as llm:
        (output,) = llm.embed("The film was good")
    wanted = states(folder, output.prompt_token_ids, trust_remote_code=False)[0]
    torch.testing.assert_close(torch.tensor(output.outputs.embedding), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["BertForSequenceClassification", "bertforsequenceclassification"])
def test_transformers_own_class_runs_where_there_is_one(architecture: str, tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model")
    wanted = LLM(str(folder)).classify("good")[0].outputs.probs
    with_code(folder, "bert", architecture)
    if architecture == "BertForSequenceClassification":
        assert LLM(str(folder)).classify("good")[0].outputs.probs == wanted
        with pytest.warns(UserWarning, match="code of its own, which is not run"):
            assert LLM(str(folder), trust_remote_code=True).classify("good")[0].outputs.probs == wanted
    else:  # another spelling is no other model
        LLM(str(folder), convert="none").close()


@pytest.mark.parametrize("model_type", ["bert", "unheard_of_by_transformers"])
def test_a_conversion_brings_the_code_along(model_type: str, tmp_path: Path) -> None:
    folder = with_code(tiny.base_model("bert", tmp_path / "model"), model_type)
    convert(str(folder), tmp_path / "out", head="random", num_labels=2, trust_remote_code=True)
    with pytest.raises(ModelError, match="--trust-remote-code"):
        LLM(str(tmp_path / "out"))
    with LLM(str(tmp_path / "out"), trust_remote_code=True) as llm:
        (output,) = llm.classify("The film was good")
    first = states(folder, output.prompt_token_ids, trust_remote_code=True)[0]
    weight = load_file(tmp_path / "out" / "model.safetensors")["score.weight"]
    assert output.outputs.logits == pytest.approx((weight @ first).tolist(), abs=1e-4)


def test_our_own_format_has_no_place_for_code(tmp_path: Path) -> None:
    autos = {"AutoModelForSequenceClassification": "own.OwnForSequenceClassification"}
    folder = tiny.classifier("bert", tmp_path / "model")
    with_code(folder, "of_its_own", "OwnForSequenceClassification", **autos)
    save_file({"weight": torch.randn(2, 32)}, tmp_path / "head.safetensors")
    head = {"head": "file", "head_weights": str(tmp_path / "head.safetensors"), "pooling": "mean", "num_labels": 2}
    with pytest.raises(ModelError, match="no place for it"):
        convert(str(folder), tmp_path / "out", trust_remote_code=True, **head)
    assert not (tmp_path / "out").exists()
