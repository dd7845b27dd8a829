"""A GGUF file of a tiny Llama, as llama.cpp writes it."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from . import tokenizers
from .tiny import randomize

_LAYERS, _HEADS, _KV_HEADS, _HIDDEN, _INNER, _LENGTH = 2, 4, 2, 32, 48, 48
_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write(path: Path) -> Path:
    """Write the file: float32, a byte-level tokenizer."""
    tokenizer = tokenizers.byte_level()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=_HIDDEN, intermediate_size=_INNER, num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS, num_key_value_heads=_KV_HEADS, max_position_embeddings=_LENGTH,
    )  # fmt: skip
    torch.manual_seed(0)
    model = randomize(LlamaForCausalLM(config))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(_LENGTH)
    writer.add_embedding_length(_HIDDEN)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokenizer))
    _add_tokenizer(writer, tokenizer)
    for name, tensor in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        writer.add_tensor(f"{_stem(stem)}.{kind}", _permuted(stem, tensor).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index in special else 1 for index in range(len(tokens))])
    writer.add_token_merges([" ".join(each) if isinstance(each, list) else each for each in state["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)


def _stem(name: str) -> str:
    plain = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if name in plain:
        return plain[name]
    _, _, layer, inner = name.split(".", 3)
    return f"blk.{layer}.{_NAMES[inner]}"


def _permuted(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """llama.cpp keeps the two halves of each rotary pair side by side."""
    heads = {"q_proj": _HEADS, "k_proj": _KV_HEADS}.get(name.rpartition(".")[2])
    if heads is None:
        return tensor
    return tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
