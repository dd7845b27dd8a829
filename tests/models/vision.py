"""Tiny models for images, with what their processors read beside the weights."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from . import tiny, tokenizers

SPECIAL = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>"]
IMAGE, VIDEO = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
# As Qwen2.5-VL's, without numbers for images and without a system prompt.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH = 4
IMAGES: dict[str, Any] = dict(patch_size=PATCH, temporal_patch_size=2, merge_size=2)
SIZE = {"shortest_edge": (2 * PATCH) ** 2, "longest_edge": (16 * PATCH) ** 2}


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    made = tokenizers.byte_level()
    made.add_special_tokens({"additional_special_tokens": [AddedToken(each, special=True) for each in SPECIAL]})
    made.chat_template = CHAT_TEMPLATE
    return made


def qwen2_5_vl_config(**values: Any) -> Any:
    ids = dict(zip(SPECIAL, tokenizer().convert_tokens_to_ids(SPECIAL), strict=True))
    tiny_config = tiny.ARCHITECTURES["qwen2_5_vl"].config
    text = {**tiny_config["text_config"], "vocab_size": len(tokenizer()), "max_position_embeddings": 1024}
    vision = dict(
        depth=3, hidden_size=16, num_heads=2, intermediate_size=16, out_hidden_size=32, fullatt_block_indexes=[1],
        patch_size=PATCH, spatial_merge_size=2, temporal_patch_size=2, window_size=16, tokens_per_second=2,
    )  # fmt: skip
    return transformers.Qwen2_5_VLConfig(
        **{
            "text_config": text,
            "vision_config": vision,
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "num_labels": 3,
            **values,
        }
    )


def save_processor(folder: Path) -> None:
    """The files of Qwen2.5-VL's processor, of sizes that suit tiny images."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    Qwen2VLImageProcessorPil(size=SIZE, **IMAGES).save_pretrained(folder)
    settings = {"video_processor_type": "Qwen2VLVideoProcessor", "size": SIZE, **IMAGES}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))


def qwen2_5_vl(folder: Path, **values: Any) -> Path:
    """A `Qwen2_5_VLForConditionalGeneration` with random weights, its tokenizer and its processor."""
    model = transformers.Qwen2_5_VLForConditionalGeneration(qwen2_5_vl_config(**values))
    tiny.save(tiny.randomize(model), tokenizer(), folder)
    save_processor(folder)
    return folder


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random colours."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def film(num_frames: int, width: int, height: int, seed: int = 0) -> np.ndarray:
    """Random frames, `(num_frames, height, width, 3)`."""
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
