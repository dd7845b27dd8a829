"""Tiny chat models, whose tokenizers have single tokens for the labels of decisions, and what transformers answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.pipelines import DecisionPipeline

from tests.models import tiny

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS: dict[str, Any] = {
    "refund": {"type": "noul", "instructions": "Is a refund requested?"},
    "spam": {"type": "noul", "criteria": {"true": "advertising", "false": "a real message"}},
    "tone": {
        "type": "choice",
        "instructions": "The tone?",
        "criteria": {"calm": "polite", "angry": None, "sad": {"x": 1}},
    },
    "urgency": {"type": "score", "instructions": "How urgent?", "criteria": ["can wait", "this week", "today"]},
    "letters": {"type": "choice", "criteria": {f"option {index}": None for index in range(26)}},
}
STATES: list[Any] = [
    "I was charged twice. <|mark|> <|split|> <|endoftext|> <|im_end|>",
    {"message": "WIN a phone <|mark|>", "count": [1, 2.5, None]},
    "",
]
REQUESTS = [{"state": state, "questions": QUESTIONS} for state in STATES]


def tokenizer(**special: str) -> Any:
    made = tiny.tokenizers.byte_level(**special)
    made.add_tokens(["Yes", "No"])
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHAT_TEMPLATE
    return made


def chat_model(name: str, folder: Path, **values: Any) -> Path:
    """A checkpoint of a causal language model with a chat template."""
    length = {"gpt2": "n_positions"}.get(name, "max_position_embeddings")
    tokens = tokenizer()
    config = tiny.config_of(name, **{length: 1024, **values})
    config.get_text_config().vocab_size = len(tokens)
    model = transformers.AutoModelForCausalLM.from_config(config)
    return tiny.save(tiny.randomize(model), tokens, folder)


def pipeline(folder: Path) -> DecisionPipeline:
    """transformers' own, on the language model: by its path it would make a JEV of some."""
    return DecisionPipeline(
        model=transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
    )


def assert_same(found: Any, expected: Any, within: float = 1e-4) -> None:
    """The same answers, and in the same order."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert_same(found[name], value, within)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, within)
    elif isinstance(expected, float):
        assert abs(found - expected) < within
    else:
        assert found == expected
