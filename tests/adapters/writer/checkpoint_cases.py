"""Tiny models of several families, saved, and plans to convert them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from vllm_cls.adapters.classifiers.own_type import VclsConfig
from vllm_cls.architecture import ConversionPlan
from vllm_cls.checkpoint.files import Checkpoint

HIDDEN, LABELS = 16, 3
TINY = {
    "hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
BERT = hf.BertConfig(**TINY, max_position_embeddings=32)
GPT2 = hf.GPT2Config(
    n_embd=HIDDEN, n_layer=2, n_head=2, vocab_size=50, n_positions=20, bos_token_id=1, eos_token_id=2, pad_token_id=0
)
QWEN2 = hf.Qwen2Config(**TINY, num_key_value_heads=1)
TIED = hf.Qwen2Config(**TINY, num_key_value_heads=1, tie_word_embeddings=True)
LLAMA = hf.LlamaConfig(**TINY, num_key_value_heads=1)
MIXTRAL = hf.MixtralConfig(**TINY, num_key_value_heads=1, num_local_experts=4)
QWEN2_5_VL = hf.Qwen2_5_VLConfig(
    text_config={
        **TINY, "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    },
    vision_config={
        "depth": 2, "hidden_size": HIDDEN, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": HIDDEN,
        "fullatt_block_indexes": [1],
    },
)  # fmt: skip
T5 = hf.T5Config(d_model=HIDDEN, d_ff=24, num_layers=2, num_heads=2, vocab_size=50, d_kv=8)


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


SCORE = {"score.weight": rows(LABELS, HIDDEN)}
SCORE_BIAS = {**SCORE, "score.bias": rows(LABELS)}
CLASSIFIER = {"classifier.weight": rows(LABELS, HIDDEN), "classifier.bias": rows(LABELS)}
POOLER = {"bert.pooler.dense.weight": rows(HIDDEN, HIDDEN), "bert.pooler.dense.bias": rows(HIDDEN)}


def two_layers(stem: str) -> dict[str, torch.Tensor]:
    return {
        f"{stem}.dense.weight": rows(HIDDEN, HIDDEN), f"{stem}.dense.bias": rows(HIDDEN),
        f"{stem}.out_proj.weight": rows(LABELS, HIDDEN), f"{stem}.out_proj.bias": rows(LABELS),
    }  # fmt: skip


def own(config: hf.PreTrainedConfig) -> VclsConfig:
    settings = {"pooling": "MEAN", "head": {"num_rows": LABELS, "bias": True}}
    return VclsConfig(backbone_config=config.to_dict(), vcls=settings, num_labels=LABELS)


def save(model_class: type, config: hf.PreTrainedConfig, folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    model_class(copy.deepcopy(config)).save_pretrained(folder, **options)
    return folder


def edit(folder: Path, change: Any) -> None:
    """Rewrite a single-file checkpoint with what `change` makes of its tensors."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def make_plan(source: Path, target: type, head: Any, **options: Any) -> ConversionPlan:
    config = options.pop("config", None)
    if config is None:
        config = target.config_class.from_pretrained(source, num_labels=LABELS)
    out = options.pop("out", source.with_name("out"))
    return ConversionPlan(Checkpoint(source, None, "tiny"), config, target, head, out, "# card\n", **options)


def qwen_plan(source: Path, **options: Any) -> ConversionPlan:
    return make_plan(source, hf.Qwen2ForSequenceClassification, options.pop("head", SCORE), **options)


def assert_opens(out: Path, target: type, source: Path, source_class: type, head: dict[str, torch.Tensor]) -> None:
    """Nothing is missing, unexpected or misshapen; the backbone is the source's, the head is the given one."""
    model, info = target.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    parameters = model.state_dict()
    for name, tensor in head.items():
        assert torch.equal(parameters[name], tensor), name
    before = source_class.from_pretrained(source).base_model.state_dict()
    after = model.base_model.state_dict()
    shared = [name for name in after if f"{model.base_model_prefix}.{name}" not in head]
    assert len(shared) > 10
    for name in shared:
        assert torch.equal(after[name], before[name]), name
