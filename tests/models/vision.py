"""Tiny models for images, with what their processors read beside the weights."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
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


# -- other models ------------------------------------------------------------------------------------

_TEXT: dict[str, Any] = {**tiny.ARCHITECTURES["qwen2"].config, "model_type": "qwen2", "max_position_embeddings": 1024}
_TOWER: dict[str, Any] = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
)


def _with_tokens(**names: str) -> PreTrainedTokenizerFast:
    """A tokenizer with tokens of its own, which are its attributes too."""
    plain = tokenizers.byte_level()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer, eos_token=plain.eos_token, pad_token=plain.pad_token,
        extra_special_tokens=names,
    )  # fmt: skip


def llava(folder: Path) -> tuple[Path, Any]:
    """A LLaVA with random weights, and transformers' processor for it."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokens = _with_tokens(image_token="<image>")
    size = {"height": 32, "width": 32}
    processor = transformers.LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size), tokens, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        text_config={**_TEXT, "vocab_size": len(tokens)}, vision_config={**_TOWER, "model_type": "clip_vision_model"},
        image_token_index=tokens.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
    )  # fmt: skip
    return _saved(transformers.LlavaForConditionalGeneration(config), processor, folder), processor


def gemma3(folder: Path) -> tuple[Path, Any]:
    """A Gemma 3, whose images see themselves both ways, and transformers' processor for it."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokens = _with_tokens(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = transformers.Gemma3Processor(images, tokens, image_seq_length=4)
    text = {**tiny.ARCHITECTURES["gemma2"].config, "max_position_embeddings": 1024, "vocab_size": len(tokens)}
    config = transformers.Gemma3Config(
        text_config={**text, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
        vision_config={**_TOWER, "model_type": "siglip_vision_model"}, mm_tokens_per_image=4,
        image_token_index=tokens.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokens.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokens.convert_tokens_to_ids("<end_of_image>"),
    )  # fmt: skip
    return _saved(transformers.Gemma3ForConditionalGeneration(config), processor, folder), processor


def idefics3(folder: Path) -> tuple[Path, Any]:
    """An Idefics3, which cuts images into tiles, and transformers' processor for it."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    rows = {f"row_{row}_{column}": f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)}
    tokens = _with_tokens(
        fake="<fake_token_around_image>", image_token="<image>", end="<end_of_utterance>", tag="<global-img>", **rows
    )
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = transformers.Idefics3Processor(images, tokens, image_seq_len=4)
    config = transformers.Idefics3Config(
        text_config={**_TEXT, "vocab_size": len(tokens)}, vision_config={**_TOWER, "model_type": "idefics3_vision"},
        image_token_id=tokens.convert_tokens_to_ids("<image>"), scale_factor=2,
    )  # fmt: skip
    return _saved(transformers.Idefics3ForConditionalGeneration(config), processor, folder), processor


def _saved(model: Any, processor: Any, folder: Path) -> Path:
    tiny.randomize(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def last_state(folder: Path, given: Any) -> torch.Tensor:
    """The last token's state, as transformers' model hands it to its output layer, of what its processor gives."""
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(**given, use_cache=False)
    return seen[-1][0, -1]
