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

from ..models import tiny

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


SAME_NAMES = """
from transformers.models.qwen2 import modeling_qwen2 as own


class Qwen2Model(own.Qwen2Model):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = 2 * output.last_hidden_state + 1
        return output


class Qwen2ForCausalLM(own.Qwen2ForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = Qwen2Model(config)


class Qwen2ForSequenceClassification(own.Qwen2ForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        self.model = Qwen2Model(config)
        del self.score
        self.{head} = own.nn.Linear(config.hidden_size, config.num_labels, bias=False)

    def forward(self, input_ids, attention_mask=None, **kwargs):
        states = self.model(input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        last = (attention_mask if attention_mask is not None else input_ids.new_ones(input_ids.shape)).sum(-1) - 1
        logits = self.{head}(states[range(len(last)), last])
        return own.SequenceClassifierOutputWithPast(logits=logits)
"""


def with_same_names(folder: Path, head: str = "score", **autos: str) -> Path:
    """A Qwen2 whose own code calls its classes as transformers does, and computes something else."""
    code = SAME_NAMES.replace("{head}", head).replace(
        "import modeling_qwen2 as own", "import modeling_qwen2 as own\nfrom transformers.modeling_outputs import *", 1
    )
    (folder / "own.py").write_text(code.replace("own.SequenceClassifier", "SequenceClassifier"))
    edit(folder, auto_map={auto: f"own.{name}" for auto, name in autos.items()})
    return folder


def logits_of_transformers(folder: Path, *, trust_remote_code: bool) -> list[float]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=trust_remote_code)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits: list[float] = model.eval()(**tokenizer("The film was good", return_tensors="pt")).logits[0].tolist()
    return logits


def ours(folder: Path, **options: Any) -> list[float]:
    with LLM(str(folder), **options) as llm:
        return llm.classify("The film was good")[0].outputs.logits


@pytest.mark.parametrize("head", ["score", "classifier"])
def test_trusted_code_runs_also_under_names_of_transformers(head: str, tmp_path: Path) -> None:
    folder, plain = (tiny.classifier("qwen2", tmp_path / name) for name in ("own", "plain"))
    by_transformers = logits_of_transformers(plain, trust_remote_code=False)
    with_same_names(folder, head, AutoModelForSequenceClassification="Qwen2ForSequenceClassification")
    if head == "classifier":
        path = folder / "model.safetensors"
        renamed = {name.replace("score.", "classifier."): tensor for name, tensor in load_file(path).items()}
        save_file(renamed, path, {"format": "pt"})
    else:
        with pytest.warns(UserWarning, match="code of its own, which is not run.*--trust-remote-code"):
            assert ours(folder) == pytest.approx(by_transformers, abs=1e-4)
    wanted = logits_of_transformers(folder, trust_remote_code=True)
    assert max(abs(one - other) for one, other in zip(wanted, by_transformers, strict=True)) > 0.05
    assert ours(folder, trust_remote_code=True) == pytest.approx(wanted, abs=1e-4)
    convert(str(folder), tmp_path / "out", trust_remote_code=True)
    assert ours(tmp_path / "out", trust_remote_code=True) == pytest.approx(wanted, abs=1e-4)
    assert ours(plain) == pytest.approx(by_transformers, abs=1e-4)  # which goes on as ever


def test_a_trusted_language_models_own_backbone_runs(tmp_path: Path) -> None:
    folder = with_same_names(tiny.causal_lm("qwen2", tmp_path / "own"), AutoModelForCausalLM="Qwen2ForCausalLM")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(word).input_ids[0] for word in (" bad", " good")]
    with torch.no_grad():
        wanted = model(**tokenizer("The film was good", return_tensors="pt")).logits[0, -1, rows].tolist()
    overrides = {"classifier_from_token": [" bad", " good"]}
    found = ours(folder, convert="classify", hf_overrides=overrides, trust_remote_code=True)
    assert found == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(ModelError, match="would open as transformers' own class"):
        convert(str(folder), tmp_path / "out", head="tokens", label_tokens="b= bad,g= good", trust_remote_code=True)
