"""Tiny models for videos, each with transformers' processor for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from vllm_cls.media.video_processors import video_processor

from . import tiny, vision

_TEXT: dict[str, Any] = {**tiny.ARCHITECTURES["qwen2"].config, "model_type": "qwen2", "max_position_embeddings": 1024}
_TOWER: dict[str, Any] = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
)
SIZE = {"height": 32, "width": 32}
PLACES = {
    "llava_onevision": "<video>", "llava_next_video": "<video>", "video_llava": "<video>", "qwen3_vl": vision.VIDEO,
}  # fmt: skip


def _assembled(name: str, folder: Path, images: Any, settings: dict[str, Any], tokens: Any, **values: Any) -> Any:
    """transformers' processor of its parts, whatever their classes; its files are written."""
    tokens.save_pretrained(folder)
    images.save_pretrained(folder)
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": name, **values}))
    own = type(name, (getattr(transformers, name),), {"check_argument_for_proper_class": lambda *_: None})
    videos = video_processor(folder, {}, "")
    return own(image_processor=images, video_processor=videos, tokenizer=tokens, **values)


def llava_onevision(folder: Path) -> tuple[Path, Any]:
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    tokens = vision._with_tokens(image_token="<image>", video_token="<video>")
    config = transformers.LlavaOnevisionConfig(
        text_config={**_TEXT, "vocab_size": len(tokens)}, vision_config={**_TOWER, "model_type": "siglip_vision_model"},
        image_token_index=tokens.convert_tokens_to_ids("<image>"), video_token_index=tokens.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[32, 32]], vision_feature_select_strategy="full",
    )  # fmt: skip
    vision._saved(transformers.LlavaOnevisionForConditionalGeneration(config), tokens, folder)
    processor = _assembled(
        "LlavaOnevisionProcessor", folder,
        LlavaOnevisionImageProcessorPil(size=SIZE, image_grid_pinpoints=[[32, 32]]),
        {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": SIZE}, tokens,
        num_image_tokens=16, vision_feature_select_strategy="full",
    )  # fmt: skip
    return folder, processor


def llava_next_video(folder: Path) -> tuple[Path, Any]:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokens = vision._with_tokens(image_token="<image>", video_token="<video>")
    config = transformers.LlavaNextVideoConfig(
        text_config={**_TEXT, "vocab_size": len(tokens)}, vision_config={**_TOWER, "model_type": "clip_vision_model"},
        image_token_index=tokens.convert_tokens_to_ids("<image>"), video_token_index=tokens.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[32, 32]], vision_feature_layer=-1,
    )  # fmt: skip
    vision._saved(transformers.LlavaNextVideoForConditionalGeneration(config), tokens, folder)
    processor = _assembled(
        "LlavaNextVideoProcessor", folder,
        LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE, image_grid_pinpoints=[[32, 32]]),
        {"video_processor_type": "LlavaNextVideoVideoProcessor", "size": {"shortest_edge": 32}, "crop_size": SIZE}, tokens,
        patch_size=8, vision_feature_select_strategy="default",
    )  # fmt: skip
    return folder, processor


def video_llava(folder: Path) -> tuple[Path, Any]:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokens = vision._with_tokens(image_token="<image>", video_token="<video>")
    config = transformers.VideoLlavaConfig(
        text_config={**_TEXT, "vocab_size": len(tokens)}, vision_config={**_TOWER, "model_type": "clip_vision_model"},
        image_token_index=tokens.convert_tokens_to_ids("<image>"), video_token_index=tokens.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
    )  # fmt: skip
    vision._saved(transformers.VideoLlavaForConditionalGeneration(config), tokens, folder)
    size = {"shortest_edge": 32}
    processor = _assembled(
        "VideoLlavaProcessor", folder, CLIPImageProcessorPil(size=size, crop_size=SIZE),
        {"video_processor_type": "VideoLlavaVideoProcessor", "size": size, "crop_size": SIZE}, tokens, patch_size=8,
    )  # fmt: skip
    return folder, processor


def qwen3_vl(folder: Path) -> tuple[Path, Any]:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokens = vision.tokenizer()
    ids = dict(zip(vision.SPECIAL, tokens.convert_tokens_to_ids(vision.SPECIAL), strict=True))
    text = {
        **tiny.ARCHITECTURES["qwen2"].config,
        "head_dim": 16,
        "vocab_size": len(tokens),
        "max_position_embeddings": 1024,
    }
    config = transformers.Qwen3VLConfig(
        text_config={**text, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
        vision_config=dict(
            depth=3, hidden_size=16, num_heads=2, intermediate_size=16, out_hidden_size=text["hidden_size"], patch_size=4,
            spatial_merge_size=2, temporal_patch_size=2, deepstack_visual_indexes=[1], num_position_embeddings=16,
        ),
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    vision._saved(transformers.Qwen3VLForConditionalGeneration(config), tokens, folder)
    size = {"shortest_edge": 64, "longest_edge": 64 * 64 * 4}
    processor = _assembled(
        "Qwen3VLProcessor", folder, Qwen2VLImageProcessorPil(size=vision.SIZE, **vision.IMAGES),
        {"video_processor_type": "Qwen3VLVideoProcessor", "size": size, **vision.IMAGES}, tokens,
    )  # fmt: skip
    return folder, processor


def internvl_files(folder: Path) -> Any:
    """The files of InternVL's processor, and its tokenizer."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tokens = vision._with_tokens(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    _assembled(
        "InternVLProcessor", folder, GotOcr2ImageProcessorPil(size=SIZE),
        {"video_processor_type": "InternVLVideoProcessor", "size": SIZE}, tokens, image_seq_length=4,
    )  # fmt: skip
    return tokens
