"""Classifiers of the benchmarked sizes, with random weights, since speed does not depend on them.

They are written as ordinary checkpoints with a tokenizer, so that any library opens them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, nearest
from . import vocabulary


@dataclass(frozen=True)
class Shape:
    """A model type with the values of its config.

    Args:
        longest: sequence, in tokens.
        encoder: attention sees both sides; else it is causal.
    """

    model_type: str
    values: dict[str, Any]
    vocab_size: int
    longest: int
    encoder: bool = False


def _bert(hidden: int, layers: int, heads: int, intermediate: int, vocab_size: int = 30_522) -> Shape:
    values = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": intermediate, "max_position_embeddings": 512, "pad_token_id": 0,
    }  # fmt: skip
    return Shape("bert", values, vocab_size, 512, encoder=True)


def _qwen2(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocab_size: int = 151_936) -> Shape:
    values = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": intermediate, "max_position_embeddings": 32_768,
        "bos_token_id": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }  # fmt: skip
    return Shape("qwen2", values, vocab_size, 32_768)


_SMOLLM2 = Shape(
    "llama",
    {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "max_position_embeddings": 8192, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
    },
    49_152,
    8192,
)  # fmt: skip

SHAPES = {
    "minilm": _bert(384, 6, 12, 1536),
    "bert-base": _bert(768, 12, 12, 3072),
    "gpt2": Shape("gpt2", {"n_embd": 768, "n_layer": 12, "n_head": 12, "bos_token_id": None}, 50_257, 1024),
    "smollm2-135m": _SMOLLM2,
    "qwen2-0.5b": _qwen2(896, 24, 14, 2, 4864),
    "qwen2-1.5b": _qwen2(1536, 28, 12, 2, 8960),
    "qwen2-7b": _qwen2(3584, 28, 28, 4, 18_944, 152_064),
    "tiny-bert": _bert(64, 2, 4, 128, 4000),
    "tiny-qwen2": _qwen2(64, 2, 4, 2, 128, 4000),
}
"""The last two are for smoke runs."""


def write_model(name: str, folder: Path, *, dtype: str = "float32", num_labels: int = 2, device: str = "cpu") -> Path:
    """Write the checkpoint of a shape, unless it is there already; the same weights each time on the same device.

    Args:
        folder: the models' folder; the checkpoint is made within it.
        device: where the random numbers are drawn; billions of them take a while on a CPU.

    Raises:
        ConfigError: there is no such shape.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if name not in SHAPES:
        raise ConfigError(f"shape {name!r} is unknown; use one of {', '.join(SHAPES)}.{nearest(name, SHAPES)}")
    shape, out = SHAPES[name], folder / f"{name}-{dtype}"
    if (out / "config.json").exists():
        return out
    make = vocabulary.wordpiece if shape.encoder else vocabulary.byte_level
    tokenizer = make(shape.vocab_size, shape.longest)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    values = {**shape.values, **{key: value for key, value in ids.items() if value is not None}}
    config = AutoConfig.for_model(shape.model_type, vocab_size=shape.vocab_size, num_labels=num_labels, **values)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config, dtype=getattr(torch, dtype))
    unfinished = out.with_name(f".{out.name}")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(out)
    return out
