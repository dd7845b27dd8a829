"""A small config of any model type: its default one with every size made small by the size's name.

Windows and chunks become shorter than the texts that are run, every kind of layer stays in at least once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

VOCABULARY = 160
"""Token ids of every model; the first 16 are left to special tokens."""
FIRST_TOKEN = 16
POSITIONS = 64

# The first pattern that matches a whole name decides; sizes that none matches stay.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"(n_embd|d_model|dim|emb_dim|d_latents|hidden_size|hidden_size_global|word_embed_proj_dim|embedding_dim|lru_width|"
     r"entity_emb_size|pooler_hidden_size|prediction_head_size|cross_attention_hidden_size|backbone_hidden_size|"
     r"out_hidden_size|projector_(in|out)put_dim|input_size|adapter_(in|out)(put_size|_dim)|encoder_hidden_size)", 64),
    (r"(attention_hidden_size|mamba_d_ssm|vision_output_dim)", 128),
    (r"(embedding_size|input_embedding_size|output_embedding_size|embed_dim|true_hidden_size|intra_bottleneck_size|"
     r"hidden_size_per_layer_input|(pronunciation|shape)_embed_dim|ple_embed_dim|conv_output_size)", 32),
    (r".*(intermediate_size|ffn_dim|ffn_hidden_size|d_ff|dff|dim_ff|d_inner|hidden_dim|feed_forward_size|mlp_dim|"
     r"intermediate_size_mlp)", 64),
    (r"(num_attention_heads|num_heads|n_heads?|attention_heads|(en|de)coder_attention_heads|num_query_groups|"
     r"num_(en|de)coder_attention_heads|swa_num_attention_heads|linear_num_(value_)?heads|index_n_heads|"
     r"num_(cross|self)_attention_heads)", 4),
    (r"(num_key_value_heads|swa_num_key_value_heads|linear_num_key_heads|num_kv_heads|kv_n_heads)", 2),
    (r"(head_dim|d_head|d_kv|dim_head|attention_head_size|kv_channels|swa_head_dim|v_head_dim|qk_nope_head_dim|"
     r"linear_(key_|value_)?head_dim|global_head_dim|attention_head_dim|mamba_head(_)?dim|mamba_d_head)", 16),
    (r"(qk_rope_head_dim|rotary_dim|index_head_dim|d_rel)", 8),
    (r"qk_head_dim", 24),
    (r"(q_lora_rank|kv_lora_rank|o_lora_rank|adapter_rank|laurel_rank|hc_lowrank|router_hidden_size)", 16),
    (r"(num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers|num_blocks|depth|"
     r"num_global_layers|num_layers_per_stack|num_self_attends_per_block|conf_num_hidden_layers)", 2),
    (r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts)", 4),
    (r"(num_experts_per_tok(en)?|moe_k|moe_top_?k|top_k_experts)", 2),
    (r"(n_group|topk_group|num_expert_group|o_groups|zero_expert_num)", 1),
    (r"(n_groups|mamba_n_?groups)", 2),
    (r"(mamba_n_heads|mamba_num_heads|n_mamba_heads)", 8),
    (r"(state_size|ssm_state_size|mamba_d_state|mamba_dt_rank|time_step_rank)", 8),
    (r"(max_position_embeddings|n_positions|max_seq_len|seq_length|n_ctx|context_length|max_(source|target)_positions|"
     r"original_max_position_embeddings|model_max_length|max_relative_positions|rel_extent)", POSITIONS),
    (r"(sliding_window(_size)?|attention_chunk_size|local_attention|window_size|attention_window(_size)?|"
     r"keep_window_size|local_attention_window_len)", 8),
    (r"(block_size|chunk_size|mamba_chunk_size|(local|lsh)_attn_chunk_length|tpu_short_seq_length|index_block_size|"
     r"local_transformer_stride|num_landmarks|segment_means_seq_len)", 8),
    (r"(index_topk|index_topk_blocks)", 8),
    (r"(relative_attention_num_buckets|position_bias_num_buckets|num_buckets)", 16),
    (r"(relative_attention_max_distance|position_bias_max_distance|relative_max_distance)", 32),
    (r"((unpadded_|decoder_|audio_|entity_)?vocab_size(_per_layer_input)?|vocab_offset)", VOCABULARY),
    (r"codebook_size", 128),
    (r"(encoder_hash_byte_group_vocab|shape_vocab_size|pronunciation_vocab_size|num_hash_buckets|ngram_vocab_size_base)",
     VOCABULARY),
    (r"(num_latents|mem_len|num_centroids)", 16),
    (r"(split_ngram_parts|make_ngram_vocab_size_divisible_by)", 4),
    (r"(image_size|crop_size)", 32),
    (r"(patch_size)", 8),
    (r"(max_2d_position_embeddings)", 128),
)  # fmt: skip
_COMPILED = [(re.compile(pattern), value) for pattern, value in _SIZES]
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_KINDS = ("layer_types", "layers_block_type", "block_types", "mlp_layer_types", "indexer_types")

# What the names do not tell, by model type.
_HINTS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "canine": {"num_hidden_layers": 2, "num_hash_functions": 4},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "esm": {"vocab_size": VOCABULARY, "mask_token_id": 4, "pad_token_id": 1},
    "esmc": {"num_key_value_heads": 4},
    "gemma3n_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "intermediate_size": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "activation_sparsity_pattern": [0.95, 0.0, 0.95, 0.0],
    },
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "glm5_next_text": {"index_kpool": 4},
    "hunyuan_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hrm_text": {"num_hidden_layers": 2, "num_layers_per_stack": None},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "layoutlmv3": {"coordinate_size": 11, "shape_size": 10},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1, "num_hidden_layers": 3},
    "lilt": {"hidden_size": 96, "num_attention_heads": 4, "max_position_embeddings": POSITIONS + 2},
    "mamba2": {"num_heads": 8},
    "markuplm": {"max_depth": 4, "xpath_unit_hidden_size": 8},
    "mpnet": {"relative_attention_num_buckets": 32},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 8},
    "reformer": {
        "is_decoder": True, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [32, 32], "hidden_size": 64,
        "attn_layers": ["local", "lsh"], "num_buckets": 4, "hash_seed": 0,
    },
    "rwkv": {"attention_hidden_size": 64},
    "squeezebert": {"embedding_size": 64},
    "t5": {"decoder_start_token_id": 0},
    "xlstm": {"num_blocks": 2, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"], "num_hidden_layers": 4},
}  # fmt: skip


def small_config(model_type: str, **values: Any) -> PreTrainedConfig:
    """A config of some thousand parameters.

    Args:
        model_type: any that transformers knows.
        values: set beside the small sizes.
    """
    config_class = CONFIG_MAPPING[model_type]
    made = _shrunk(config_class())
    for name, value in {**_HINTS.get(model_type, {}), **values}.items():
        inner = made.get(name)
        made[name] = {**inner, **value} if name.endswith("_config") and isinstance(inner, dict) else value
    config: PreTrainedConfig = config_class(**made)
    return config


def _shrunk(default: PreTrainedConfig) -> dict[str, Any]:
    """The values of a config that differ when it is made small."""
    made: dict[str, Any] = {}
    inner = [name for name in default.sub_configs if isinstance(getattr(default, name, None), PreTrainedConfig)]
    for name in inner:
        sub = getattr(default, name)
        made[name] = {**_shrunk(sub), **_HINTS.get(sub.model_type, {})}
    whole = {name: value for name, value in default.to_dict().items() if name not in inner}
    depth = next((whole[name] for name in _LAYERS if isinstance(whole.get(name), int)), None)
    kinds = _kept_layers(whole, depth)
    for name, value in whole.items():
        if isinstance(value, bool) or value is None:
            continue
        if isinstance(value, int):
            small = _small_number(name, value)
            if small != value:
                made[name] = small
        elif isinstance(value, list) and depth and len(value) == depth and kinds:
            made[name] = [value[index] for index in kinds]
        elif name == "rope_parameters" and isinstance(value, Mapping):
            made[name] = _small_rope(value)
            if "mrope_section" in getattr(default, "ignore_keys_at_rope_validation", ()):
                half = int(16 * value.get("partial_rotary_factor", 1)) // 2
                made[name].setdefault("mrope_section", [half // 4, 3 * half // 8, half - half // 4 - 3 * half // 8])
    if whole.get("kv_lora_rank") and "num_key_value_heads" in whole:
        made["num_key_value_heads"] = 4  # latent attention has no groups
        if whole.get("head_dim") == whole.get("qk_rope_head_dim"):
            made["head_dim"] = 8
    elif "head_dim" in whole and whole["head_dim"] is None:
        made["head_dim"] = 16
    if kinds:
        made |= {name: len(kinds) for name in _LAYERS if isinstance(whole.get(name), int)}
    return made


def _small_number(name: str, value: int) -> int:
    if name.endswith(("_token_id", "_token_index")):
        return value if 0 <= value < FIRST_TOKEN else 4 + sum(map(ord, name)) % 11
    if value < 2:  # off, or a choice
        return value
    small = next((small for pattern, small in _COMPILED if pattern.fullmatch(name)), value)
    return small if "vocab" in name or "dim" in name else min(small, max(value, small if "size" in name else 0))


def _kept_layers(whole: Mapping[str, Any], depth: int | None) -> list[int]:
    """Indices of layers that hold every kind once; at least two, none where layers have no kinds."""
    lists = [whole[name] for name in _KINDS if isinstance(whole.get(name), list) and len(whole[name]) == depth]
    if not lists:
        return []
    columns = list(zip(*map(_hashable, lists), strict=True))
    kept = [index for index, kind in enumerate(columns) if kind not in columns[:index]]
    return sorted(kept + [index for index in range(len(columns)) if index not in kept][: max(0, 2 - len(kept))])


def _hashable(values: Sequence[Any]) -> list[str]:
    return [str(value) for value in values]


def _small_rope(value: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters, of one kind or several by layer, for heads of 16."""
    made = {}
    for name, each in value.items():
        if isinstance(each, Mapping):
            made[name] = _small_rope(each)
        elif name == "mrope_section":
            made[name] = [2, 3, 3]
        elif name == "original_max_position_embeddings":
            made[name] = 32
        elif name in ("short_factor", "long_factor"):
            made[name] = [1.0 + index / 8 for index in range(8)]
        else:
            made[name] = each
    return made
