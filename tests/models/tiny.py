"""Tiny checkpoints of every architecture that is claimed, with random weights large enough for errors to show."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from . import tokenizers

LENGTH = 48
_DECODER = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=LENGTH,
    bos_token_id=None,
    eos_token_id=0,
    pad_token_id=1,
)
_ENCODER = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=LENGTH,
    pad_token_id=0,
)
_ROBERTA = {**_ENCODER, "max_position_embeddings": LENGTH + 2, "type_vocab_size": 1, "pad_token_id": 1}
_GPT2 = dict(n_embd=32, n_layer=3, n_head=4, n_positions=LENGTH, bos_token_id=0, eos_token_id=0, pad_token_id=1)
_VISION = dict(
    depth=1, hidden_size=16, num_heads=2, intermediate_size=16, out_hidden_size=32, fullatt_block_indexes=[0]
)


@dataclass(frozen=True)
class Tiny:
    """How to build one: config values, tokenizer, and what the parity tests expect of it."""

    model_type: str
    config: dict[str, Any]
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    form: str = "packed"
    options: dict[str, Any] = field(default_factory=dict)


ARCHITECTURES: dict[str, Tiny] = {
    "bert": Tiny("bert", _ENCODER, tokenizers.wordpiece),
    "ernie": Tiny("ernie", {**_ENCODER, "use_task_id": True}, tokenizers.wordpiece),
    "roberta": Tiny("roberta", _ROBERTA, tokenizers.roberta),
    "xlm-roberta": Tiny("xlm-roberta", _ROBERTA, lambda: tokenizers.unigram("xlm-roberta")),
    "camembert": Tiny("camembert", _ROBERTA, lambda: tokenizers.unigram("xlm-roberta")),
    "distilbert": Tiny(
        "distilbert",
        dict(dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=LENGTH, pad_token_id=0),
        lambda: tokenizers.wordpiece(pairs=False),
    ),
    "albert": Tiny(
        "albert", {**_ENCODER, "embedding_size": 16, "pad_token_id": 1}, lambda: tokenizers.unigram("albert")
    ),
    "electra": Tiny("electra", {**_ENCODER, "embedding_size": 16}, tokenizers.wordpiece),
    "deberta": Tiny(
        "deberta",
        {**_ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
        tokenizers.wordpiece,
        form="padded",
    ),
    "deberta-v2": Tiny(
        "deberta-v2",
        {
            **_ENCODER,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "type_vocab_size": 0,
            "pooler_hidden_size": 32,
        },
        tokenizers.wordpiece,
        form="padded",
    ),
    "modernbert": Tiny(
        "modernbert",
        {**_ENCODER, "local_attention": 16, "global_attn_every_n_layers": 2, "classifier_pooling": "cls"},
        lambda: tokenizers.wordpiece(pairs=False),
    ),
    "modernbert-mean": Tiny(
        "modernbert",
        {**_ENCODER, "local_attention": 16, "global_attn_every_n_layers": 2, "classifier_pooling": "mean"},
        lambda: tokenizers.wordpiece(pairs=False),
    ),
    "mpnet": Tiny("mpnet", {**_ROBERTA}, tokenizers.roberta, form="padded"),
    "xlnet": Tiny(
        "xlnet",
        dict(d_model=32, n_layer=3, n_head=4, d_inner=48, pad_token_id=1),
        lambda: tokenizers.unigram("xlnet"),
        form="padded",
    ),
    "gpt2": Tiny("gpt2", _GPT2, tokenizers.byte_level),
    "qwen2": Tiny("qwen2", _DECODER, tokenizers.byte_level),
    "qwen2-window": Tiny(
        "qwen2",
        {**_DECODER, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        tokenizers.byte_level,
    ),
    "llama": Tiny("llama", _DECODER, tokenizers.byte_level),
    "gemma2": Tiny("gemma2", {**_DECODER, "head_dim": 8, "sliding_window": 8}, tokenizers.byte_level),
    "phi": Tiny("phi", _DECODER, tokenizers.byte_level),
    "opt": Tiny(
        "opt",
        dict(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            ffn_dim=48,
            word_embed_proj_dim=32,
            max_position_embeddings=LENGTH,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=0,
        ),
        tokenizers.byte_level,
    ),
    "bloom": Tiny(
        "bloom", dict(hidden_size=32, n_layer=3, n_head=4, pad_token_id=1), tokenizers.byte_level, form="padded"
    ),
    "qwen2_5_vl": Tiny(
        "qwen2_5_vl",
        dict(
            text_config={
                **_DECODER,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
            },
            vision_config=_VISION,
            image_token_id=2,
            video_token_id=3,
            vision_start_token_id=4,
            vision_end_token_id=5,
        ),
        tokenizers.byte_level,
    ),
    "mamba": Tiny(
        "mamba",
        dict(hidden_size=32, num_hidden_layers=2, state_size=8, pad_token_id=1, bos_token_id=0, eos_token_id=0),
        tokenizers.byte_level,
        form="padded",
    ),
    "bart": Tiny(
        "bart",
        dict(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=LENGTH,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        ),
        tokenizers.roberta,
    ),
}
_OTHER_ENCODERS: dict[str, dict[str, Any]] = {
    "megatron-bert": {},
    "roc_bert": {
        "pronunciation_vocab_size": 16, "shape_vocab_size": 16, "pronunciation_embed_dim": 8, "shape_embed_dim": 8,
    },
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roformer": {"embedding_size": 16},
    "convbert": {"embedding_size": 16, "head_ratio": 2},
    "big_bird": {"attention_type": "original_full"},
}  # fmt: skip
_FORMS = {"roc_bert": "packed", "convbert": "equal"}
ARCHITECTURES |= {
    name: Tiny(name, {**_ENCODER, **values}, tokenizers.wordpiece, form=_FORMS.get(name, "padded"))
    for name, values in _OTHER_ENCODERS.items()
}
ARCHITECTURES |= {
    name: Tiny(name, _ROBERTA, tokenizers.roberta)
    for name in ("xlm-roberta-xl", "data2vec-text", "roberta-prelayernorm")
}
ARCHITECTURES["esm"] = Tiny(
    "esm", {**_ROBERTA, "position_embedding_type": "absolute", "mask_token_id": 4}, tokenizers.roberta
)
NATIVE = [name for name in ARCHITECTURES if name not in ("qwen2_5_vl", "mamba")]


@functools.cache
def _tokenizer(name: str) -> PreTrainedTokenizerFast:
    return ARCHITECTURES[name].tokenizer()


def config_of(name: str, **values: Any) -> Any:
    """The tiny config of an architecture, with `num_labels=3` unless `values` say otherwise."""
    tiny = ARCHITECTURES[name]
    given = {**tiny.config, **values}
    vocabulary = {"vocab_size": len(_tokenizer(name))}
    if "text_config" in given:
        given["text_config"] = {**given["text_config"], **vocabulary}
    else:
        given |= vocabulary
    given.setdefault("num_labels", 3)
    return AutoConfig.for_model(tiny.model_type, **given)


def randomize(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Weights drawn wide enough that a wrong position, mask or type changes the logits by far more than 1e-4."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.1, generator=generator)
        elif parameter.numel() > 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model.eval()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None, folder: Path) -> Path:
    """Write a checkpoint that opens like any downloaded one."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def classifier(name: str, folder: Path, **values: Any) -> Path:
    """A checkpoint of transformers' own `*ForSequenceClassification`."""
    config = config_of(name, **values)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    return save(randomize(model), _tokenizer(name), folder)


def token_classifier(name: str, folder: Path, **values: Any) -> Path:
    """A checkpoint of transformers' own `*ForTokenClassification`; it labels persons and places unless `values` say."""
    values.setdefault("id2label", dict(enumerate(("O", "B-PER", "I-PER", "B-LOC", "I-LOC"))))
    config = config_of(name, num_labels=len(values["id2label"]), **values)
    model = transformers.AutoModelForTokenClassification.from_config(config)
    return save(randomize(model), _tokenizer(name), folder)


def causal_lm(name: str, folder: Path, **values: Any) -> Path:
    """A checkpoint of the `*ForCausalLM` (or `*LMHeadModel`, `*ForConditionalGeneration`)."""
    config = config_of(name, **values)
    auto: Any = transformers.AutoModelForCausalLM
    if "text_config" in ARCHITECTURES[name].config:
        auto = transformers.AutoModelForImageTextToText
    return save(randomize(auto.from_config(config)), _tokenizer(name), folder)


def base_model(name: str, folder: Path, **values: Any) -> Path:
    """A checkpoint of the bare `*Model`."""
    return save(randomize(transformers.AutoModel.from_config(config_of(name, **values))), _tokenizer(name), folder)
