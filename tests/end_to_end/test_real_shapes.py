"""Real shapes with random weights: ERNIE-3.0-base, GPT2-small and Qwen2-0.5B equal transformers (slow)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from vllm_cls import LLM, convert

SHAPES: dict[str, dict[str, Any]] = {
    "ernie": dict(
        vocab_size=40000,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=2048,
        type_vocab_size=4,
        task_type_vocab_size=3,
        use_task_id=True,
    ),
    "gpt2": dict(),
    "qwen2": dict(
        vocab_size=151936,
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        rope_theta=1e6,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SHAPES))
def test_real_shapes(tmp_path: Path, name: str) -> None:
    config = transformers.AutoConfig.for_model(name, **SHAPES[name])
    torch.manual_seed(0)
    auto: Any = transformers.AutoModel if name == "ernie" else transformers.AutoModelForCausalLM
    auto.from_config(config).save_pretrained(tmp_path / "source")
    convert(str(tmp_path / "source"), tmp_path / "out", head="random", num_labels=3, seed=0)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(10, 20000, (length,), generator=generator).tolist() for length in (1, 7, 40, 128, 12)]
    llm = LLM(str(tmp_path / "out"))
    assert llm.describe()["execution"] == "packed"
    outputs = llm.classify(prompts)
    llm.close()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    for ids, output in zip(prompts, outputs, strict=True):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0]
        assert output.outputs.logits == pytest.approx(expected.tolist(), abs=1e-4)
        assert output.outputs.probs == pytest.approx(expected.softmax(-1).tolist(), abs=1e-4)
