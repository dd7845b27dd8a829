"""JEV decision models answer what transformers' own `decide` does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, JevConfig, JevForDecision
from transformers.decision import DecisionConfig
from transformers.models.jev.configuration_jev import JEV_TEMPLATE
from transformers.pipelines import DecisionPipeline

from tests.decide.chat_models import REQUESTS, assert_same, chat_model, tokenizer
from tests.models import tiny
from vllm_cls import LLM, PromptError

_TEXT = dict(
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=1024,
    pad_token_id=1,
    bos_token_id=None,
    eos_token_id=0,
)
_BACKBONES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen2 without a causal mask": {"is_causal": False},
    "qwen3_5_text": {
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    "gemma4_text": {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 0, "sliding_window": 16},
}
_VISION: dict[str, dict[str, Any]] = {
    "qwen3_5": dict(depth=1, hidden_size=16, num_heads=2, intermediate_size=16, out_hidden_size=32),
    "gemma4": dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    ),
}
REQUESTS = [{**each, "questions": {k: v for k, v in each["questions"].items() if k != "letters"}} for each in REQUESTS]  # fmt: skip
SEVEN_LEVELS = {"type": "score", "criteria": [f"level {index}" for index in range(7)]}


def jev(folder: Path, backbone: str, template: str | None = JEV_TEMPLATE, **values: Any) -> Path:
    tokens = tokenizer()
    inner = backbone if backbone in _BACKBONES else f"{backbone}_text"
    settings = {**_TEXT, **_BACKBONES[inner], "vocab_size": len(tokens)}
    if backbone in _VISION:
        settings = {"text_config": settings, "vision_config": _VISION[backbone]}
    text = AutoConfig.for_model(backbone.split()[0], **settings)
    torch.manual_seed(0)
    model = JevForDecision(JevConfig(hidden_size=32, text_config=text, **values))
    tiny.randomize(model)
    model.decision_config = DecisionConfig(
        temperature={"noul": 2.0, "choice": 0.7}, chat_template=template, noul_options=["false", "true"]
    )
    return tiny.save(model, tokens, folder)


def pipeline(folder: Path) -> DecisionPipeline:
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    return DecisionPipeline(model=JevForDecision.from_pretrained(folder, dtype=torch.float32), tokenizer=tokens)


@pytest.mark.parametrize("backbone", _BACKBONES)
@pytest.mark.parametrize("softcap", [None, 0.5])
def test_equal_to_transformers(backbone: str, softcap: float | None, tmp_path: Path) -> None:
    folder = jev(tmp_path / "jev", backbone, softcap=softcap)
    expected = [pipeline(folder)(request) for request in REQUESTS]
    with LLM(str(folder)) as llm:
        assert_same(llm.decide(REQUESTS), expected)


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """On whole models for images too, which is what the repositories of Qwen3.5 and Gemma 4 hold."""
    folders = [jev(tmp_path / name, name) for name in ("qwen2", "qwen3_5", "gemma4")]
    code = (
        "import json, sys\nfrom vllm_cls import LLM\nrequests = json.load(sys.stdin)\n"
        "print(json.dumps([LLM(folder).decide(requests) for folder in sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, *map(str, folders)]
    done = subprocess.run(command, input=json.dumps(REQUESTS), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same(json.loads(done.stdout), [[pipeline(folder)(each) for each in REQUESTS] for folder in folders])


def test_too_many_options(tmp_path: Path) -> None:
    """transformers gives a question the rows of the next type, or fails."""
    folder = jev(tmp_path / "jev", "qwen2")
    with LLM(str(folder), convert="decide") as llm, pytest.raises(PromptError, match="at most 6 options for a score"):
        llm.decide({"state": "x", "questions": {"q": SEVEN_LEVELS}})


def _beside(folder: Path, layout: str) -> Path:
    """A plain Qwen2 with a decision head in files of its own, as JEV-9B and vLLM's decision models are published."""
    chat_model("qwen2", folder)
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(24, 32, generator=generator), torch.randn(24, generator=generator)
    if layout == "vllm":
        codes = [chr(ord("A") + index) for index in range(24)]
        settings = {"codes": codes, "temperature": 1.5, "prompt": "d3", "attention_mode": "noncausal_full_attention"}
        files = {"decision_config.json": settings}
        save_file({"weight": weight}, folder / "readout.safetensors")
    else:
        ranges = {"noul": (0, 2), "score": (2, 8), "choice": (8, 24)}
        slots = {"num_slots": 24, "ranges": ranges, "verbalizers": [str(index) for index in range(24)]}
        files = {
            "judge_config.json": {"slots": slots, "softcap": 2.0, "adapter_subfolder": None},
            "calibration.json": {"per_kind": {"noul": 2.0, "score": 1.0, "choice": 0.5}},
        }
        save_file({"proj.weight": weight, "proj.bias": bias}, folder / "head.safetensors")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("layout", ["jev", "vllm"])
def test_a_head_beside_the_weights(layout: str, tmp_path: Path) -> None:
    folder = _beside(tmp_path / layout, layout)
    expected = [pipeline(folder)(request) for request in REQUESTS]
    with LLM(str(folder)) as llm:
        assert_same(llm.decide(REQUESTS), expected)
