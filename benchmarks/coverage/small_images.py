"""What the names of sizes do not tell of a model for images: parts of its small config, and the tensors of an image.

An entry names a model type. `PARTS` are values of its config beside the small sizes. `IMAGES` are the arguments of one image
of this config: a tuple is the shape of random values, a list whole numbers as they are.
"""

from __future__ import annotations

import itertools
from typing import Any

from .small_configs import small_config

_TOKEN = 7  # of an image, where the config has none


def _small(model_type: str, **values: Any) -> dict[str, Any]:
    """A part inside a part, whole."""
    return {**small_config(model_type).to_dict(), **values}


# Parts that a config leaves out by default, or that must agree with another.
PARTS: dict[str, dict[str, Any]] = {
    "chameleon": {
        "vocabulary_map": {"<image>": _TOKEN, **{f"IMGIMG{chr(65 + index)}Z": 20 + index for index in range(8)}},
        "vq_config": {
            "num_embeddings": 8, "resolution": 32, "base_channels": 32, "latent_channels": 32, "channel_multiplier": [1, 2],
        },
    },
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
        "vision_config": {
            "sam_config": _small("deepseek_ocr2_sam_vision_model", downsample_channels=[32, 64], image_size=384),
        },
    },
    "deepseek_vl_hybrid": {"high_res_vision_config": {"image_size": 64, "global_attn_indexes": [1], "scale": 4}},
    "diffusion_gemma": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64, "per_layer_config": {}},
    },
    "emu3": {
        "vocabulary_map": {
            "<image>": _TOKEN, "<|extra_200|>": 8, **{f"<|visual token {index:06}|>": 20 + index for index in range(16)},
        },
        "vq_config": {"codebook_size": 16, "base_channels": 32, "channel_multiplier": [1, 2]},
    },
    "exaone4_5": {"text_config": _small("exaone4")},
    # A tower of transformers in the place of timm's, which is not installed.
    "fast_vlm": {
        "vision_config": _small(
            "resnet", embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1], hidden_size=64, out_features=None,
            out_indices=None,
        ),
    },
    "fuyu": {"patch_size": 8},
    "gemma4": {"vision_config": _small("gemma4_vision")},
    "gemma4_unified": {
        "vision_config": {
            "patch_size": 4, "pooling_kernel_size": 2, "mm_embed_dim": 64, "mm_posemb_size": 64, "output_proj_dims": 64,
        },
    },
    "granite4_vision": {
        "downsample_rate": "2/4", "deepstack_layer_map": [[-2, 0]], "spatial_target_layers": [0, 1],
        "qformer_config": {"num_hidden_layers": 2},
    },
    "inkling2": {"vision_config": {"text_hidden_size": 64}},
    "kimi_k25": {"projection_hidden_size": 64},
    "llama4": {"vision_config": {"intermediate_size": 256, "vision_output_dim": 64}},
    "minicpm_ocr": {"image_token_id": _TOKEN, "insert_layer_id": 0},
    "minicpmv4_6": {"image_token_id": _TOKEN, "insert_layer_id": 0},
    "minicpmv4_7": {"image_token_id": _TOKEN, "insert_layer_id": 0},
    "molmo2": {
        "image_patch_id": _TOKEN,
        "vision_config": {"num_key_value_heads": 4, "image_size": [32, 32], "num_position_embeddings": 16},
        "adapter_config": {
            "vision_feature_layer": [1, 0], "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4,
            "head_dim": 16, "intermediate_size": 64, "text_hidden_size": 64,
        },
    },
    "muse_glimmer": {"out_hidden_size": 256},
    "muse_spark": {"out_hidden_size": 256, "audio_config": {"num_hidden_layers": 4}},
    "nemotron_h_omni": {"image_token_id": _TOKEN, "vision_config": {"video_temporal_patch_size": 2}},
    "paddleocr_vl": {
        "text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
    },
    # As of FastVLM.
    "perception_lm": {"vision_config": _small("clip_vision_model", model_args={"embed_dim": 64})},
    "unlimited_ocr": {
        "vision_config": {
            "sam_config": _small("unlimited_ocr_sam_vision_model", downsample_channels=[32, 64], image_size=64),
            "encoder_config": _small("unlimited_ocr_vision_encoder", image_size=64),
        },
    },
}  # fmt: skip

_PLACES = [[list(place) for place in itertools.product(range(4), range(4))]]  # of 4 × 4 patches

IMAGES: dict[str, dict[str, Any]] = {
    "deepseek_ocr2": {"pixel_values": (1, 3, 384, 384)},
    "deepseek_vl_hybrid": {"pixel_values": (1, 3, 32, 32), "high_res_pixel_values": (1, 3, 64, 64)},
    "fast_vlm": {"pixel_values": (1, 3, 32, 32)},
    "fuyu": {"pixel_values": (1, 4, 3 * 8 * 8)},
    "gemma4_unified": {"pixel_values": (1, 16, 3 * 8 * 8), "image_position_ids": _PLACES},
    "granite4_vision": {"pixel_values": (1, 2, 3, 32, 32), "image_sizes": [[32, 32]]},
    "granite_docling": {"pixel_values": (1, 1, 3, 32, 32), "pixel_attention_mask": [[True]]},
    "inkling2": {"pixel_values": (4, 16, 16, 3), "image_grid_thw": [[1, 2, 2]]},
    "inkling_mm_model": {"pixel_values": (4, 2, 8, 8, 3)},
    "kimi_k25": {"pixel_values": (16, 3, 8, 8), "image_grid_thw": [[1, 4, 4]]},
    "llama4": {"pixel_values": (1, 3, 32, 32)},
    "minicpm_ocr": {"pixel_values": (1, 3, 8, 128), "target_sizes": [[4, 4]]},
    "minicpmv4_6": {"pixel_values": (1, 3, 8, 128), "target_sizes": [[4, 4]]},
    "minicpmv4_7": {"pixel_values": (1, 3, 8, 128), "target_sizes": [[4, 4]]},
    "molmo2": {
        "pixel_values": (1, 16, 3 * 8 * 8),
        "image_token_pooling": [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]],
        "image_grids": [[1, 2, 1, 2]],
    },
    "muse_glimmer": {"pixel_values": (16, 3 * 2 * 8 * 8), "image_grid_thw": [[1, 4, 4]]},
    "muse_spark": {"pixel_values": (16, 3 * 2 * 8 * 8), "image_grid_thw": [[1, 4, 4]]},
    "paddleocr_vl": {"pixel_values": (16, 3, 8, 8), "image_grid_thw": [[1, 4, 4]]},
    "perception_lm": {"pixel_values": (1, 1, 3, 32, 32)},
    "unlimited_ocr": {"pixel_values": (1, 3, 64, 64)},
}

# What is said of others, which are refused when they are converted, opened or get an image, and why.
_TEXTS = "this model reads texts alone; leave images and videos out ({})."
_ALONE = "the model's own forward fails on a text of 5 tokens ({})."
NO_IMAGES = {
    "diffusion_gemma": _ALONE.format("its decoder reads a canvas of 256 tokens beside it"),
    "evolla": _TEXTS.format("it reads proteins beside texts, and no images"),
    "idefics": _ALONE.format(
        "Exactly 1 of pixel_values, image_encoder_embeddings or perceiver_embeddings has to be not-None"
    ),
    "mistral4": _TEXTS.format("transformers lists it for images, and has its text model alone"),
    "udop": "the source lacks transformer.decoder.relative_bias.biases.0.relative_attention_bias.weight, which "
    "UdopForSequenceClassification needs (its generator stores it once; and its images lie in the boxes of its tokens).",
}
