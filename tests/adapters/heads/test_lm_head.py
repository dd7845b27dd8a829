"""What stands between the last state and the logits, and what the output layer is called on disk, in many families."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from benchmarks.coverage.case import randomize
from benchmarks.coverage.small_configs import small_config
from vllm_cls.config import ModelConfig
from vllm_cls.model.loading.classifier import load_target
from vllm_cls.model.loading.head_choice import make_head, target_for
from vllm_cls.model.loading.source import open_source
from vllm_cls.model.loading.weights import Placement

TOKENS = [20, 37, 54]
NAMES: Any = SimpleNamespace(convert_ids_to_tokens=str)


# stored under another name; a soft cap by two other names; a scale that the backbone holds; configs that take no None for a
# token; a backbone that is not where its prefix says
@pytest.mark.parametrize(
    "name", ["gpt_neox", "deepseek_v4", "recurrent_gemma", "xlstm", "falcon_h1", "cwm", "emu3", "llama4_text", "mllama"]
)
def test_rows_of_the_output_layer_are_the_next_tokens_logits(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomize(transformers.AutoModelForCausalLM.from_config(small_config(name)))
    model.save_pretrained(tmp_path)
    prompt = torch.tensor([[21, 22, 23, 24, 25, 26, 27]])
    with torch.no_grad():
        wanted = model(input_ids=prompt, use_cache=False).logits[0, -1, TOKENS].float()
    source = dataclasses.replace(open_source(ModelConfig.from_options(tmp_path, convert="classify")), tokenizer=NAMES)
    target = target_for(source, make_head(source, "tokens", {"token_ids": TOKENS}))
    classifier: Any = load_target(source, target, Placement(torch.float32, torch.device("cpu"))).eval()
    with torch.no_grad():
        found = classifier(input_ids=prompt, use_cache=False).logits[0].float()
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
