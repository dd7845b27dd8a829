"""A tiny GGUF file, as llama.cpp's converter lays one out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers

from . import tiny

_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write(path: Path) -> tuple[Any, Any]:
    """Write a Llama with random weights; the model itself, and its tokenizer."""
    config = tiny.config_of("llama", tie_word_embeddings=False)
    tokenizer = tiny._tokenizer("llama")
    model = tiny.randomize(transformers.AutoModelForCausalLM.from_config(config))
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, config, tokenizer)
    tensors = model.state_dict()
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for i in range(config.num_hidden_layers):
        names |= {f"blk.{i}.{theirs}": f"model.layers.{i}.{ours}" for theirs, ours in _NAMES.items()}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for theirs, ours in names.items():
        tensor = tensors[f"{ours}.weight"]
        count = heads.get(theirs.rpartition(".")[2])
        writer.add_tensor(f"{theirs}.weight", (tensor if count is None else _interleaved(tensor, count)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, tokenizer


def _describe(writer: gguf.GGUFWriter, config: Any, tokenizer: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    stored = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(stored["vocab"], key=stored["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in stored["merges"]])
    writer.add_eos_token_id(config.eos_token_id)


def _interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a head in pairs, as llama.cpp rotates them."""
    size = tensor.shape[0] // heads
    return tensor.reshape(heads, 2, size // 2, -1).transpose(1, 2).reshape(tensor.shape).contiguous()
