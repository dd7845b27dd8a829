"""`mm_processor_kwargs`: what makes too much of an image, or what the model was not built for, is refused before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import vllm_cls
from vllm_cls import LLM, PromptError
from vllm_cls.errors import RunError
from vllm_cls.media.load import load_media
from vllm_cls.media.policy import MediaPolicy
from vllm_cls.media.processor import MediaProcessor

from ..models import films, vision

HUGE = 10**6


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> MediaProcessor:
    """Sizes are numbers of pixels."""
    folder = tmp_path_factory.mktemp("qwen")
    vision.save_processor(folder)
    return MediaProcessor(folder, vision.qwen2_5_vl_config(), vision.tokenizer(), "it")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> MediaProcessor:
    """Sizes are lengths: the shorter side has 32 pixels, then the middle is cut out."""
    folder = tmp_path_factory.mktemp("clip")
    tokens = vision._with_tokens(image_token="<image>", video_token="<video>")
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=films.SIZE)
    settings = {"video_processor_type": "VideoLlavaVideoProcessor", "size": {"shortest_edge": 32}}
    films._assembled("VideoLlavaProcessor", folder, images, settings, tokens, patch_size=8)
    return MediaProcessor(folder, transformers.VideoLlavaConfig(), tokens, "it")


def read(processor: MediaProcessor, width: int = 40, height: int = 32, **kwargs: Any) -> torch.Tensor:
    items = load_media({"image": vision.picture(width, height)}, MediaPolicy())
    (made,) = processor.read(items, kwargs).inputs
    return made.tensors["pixel_values"]


def sized(**sides: int) -> dict[str, Any]:
    return {"size": sides}


@pytest.mark.parametrize(
    "kwargs",
    [
        sized(shortest_edge=10**9, longest_edge=10**10), sized(shortest_edge=64, longest_edge=10**18), {"max_pixels": 10**9},
        {"min_pixels": 10**9}, {"images_kwargs": {"max_pixels": 10**9}},
    ],
)  # fmt: skip
def test_numbers_of_pixels_are_bounded(qwen: MediaProcessor, kwargs: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="more than the 67,108,864 pixels allowed"):
        read(qwen, **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        sized(height=HUGE, width=HUGE), sized(height=HUGE, width=100), sized(shortest_edge=9000), sized(longest_edge=9000),
        sized(max_height=HUGE, max_width=HUGE), {"size": HUGE}, {"crop_size": HUGE}, {"crop_size": {"height": HUGE, "width": HUGE}},
        {"pad_size": {"height": HUGE, "width": HUGE}, "do_pad": True},
    ],
)  # fmt: skip
def test_lengths_are_bounded(clip: MediaProcessor, kwargs: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="more than the 67,108,864 pixels allowed"):
        read(clip, **kwargs)


@pytest.mark.parametrize("kwargs", [{}, sized(shortest_edge=300), {"size": 300}])
def test_a_narrow_image_does_not_grow_without_bounds(clip: MediaProcessor, kwargs: dict[str, Any]) -> None:
    """One pixel wide: with 32 it would be 32 × 3.2 million."""
    with pytest.raises(PromptError, match="1 × 100000 pixels, its shorter side made (32|300), are more"):
        read(clip, 1, 100_000, **kwargs)
    assert read(clip, 1, 1000, **({"size": {"shortest_edge": 40}} if kwargs else {})).shape == (1, 3, 32, 32)
    frames = np.zeros((2, 100_000, 1, 3), np.uint8)
    with pytest.raises(PromptError, match="1 × 100000 pixels"):
        clip.read(load_media({"video": frames}, MediaPolicy()), kwargs)


def test_what_is_allowed_is_transformers_own(qwen: MediaProcessor, clip: MediaProcessor) -> None:
    """Sizes of real checkpoints among them: Qwen2-VL's longest edge is 12,845,056 pixels."""
    image = vision.picture(40, 32)
    size = {"shortest_edge": 3136, "longest_edge": 12845056}
    for processor, kwargs in (
        (qwen, {"size": size}),
        (qwen, {"size": {"shortest_edge": 16, "longest_edge": 256}}),
        (clip, {"size": {"shortest_edge": 40}}),
    ):
        own = processor._processor.image_processor.preprocess([image], **kwargs, return_tensors="pt")["pixel_values"]
        assert torch.equal(read(processor, **kwargs), own)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"patch_size": 8}, "patch_size=8, and the model was built with 4"),
        ({"merge_size": 1}, "merge_size=1, and the model was built with 2"),  # it would run, and answer something
        ({"temporal_patch_size": 1}, "temporal_patch_size=1, and the model was built with 2"),
        ({"images_kwargs": {"merge_size": 1}}, "merge_size=1"),
        ({"device": "cuda"}, "device is not for a prompt to say"),
        ({"return_tensors": "np"}, "return_tensors is not for a prompt to say"),
        ({"do_sample_frames": True}, "do_sample_frames is not for a prompt to say"),
        ({"text_kwargs": {"padding": True}}, "has no 'text_kwargs'"),
        ({"images_kwargs": {"sise": 1}}, "has no 'sise'. Did you mean 'size'"),
        ({"size": 5}, "the model's processor refuses this image"),
        ({"resample": 99}, "the model's processor refuses this image"),
        ({"max_pixels": "x"}, "the model's processor refuses this image"),
    ],
)  # fmt: skip
def test_what_the_model_was_not_built_for(qwen: MediaProcessor, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read(qwen, **kwargs)
    assert read(qwen, merge_size=2, patch_size=4).shape == read(qwen).shape


def test_what_the_towers_refuse_is_the_prompts_fault(tmp_path: Path) -> None:
    """Larger images than a CLIP was built for: the tower says so, and a client is told, not the operator."""
    source, _ = vision.llava(tmp_path / "lm")
    vllm_cls.convert(str(source), tmp_path / "out", head="random", num_labels=3, seed=0)
    prompt = {"prompt": "<image>", "multi_modal_data": {"image": vision.picture(40, 40)}}
    size = {"height": 64, "width": 64}
    with LLM(str(tmp_path / "out"), dtype="float32") as llm:
        with pytest.raises(PromptError, match="with its mm_processor_kwargs: Input image size") as caught:
            llm.classify({**prompt, "mm_processor_kwargs": {"size": size, "crop_size": size}})
        assert not isinstance(caught.value, RunError)
        assert llm.classify(prompt)[0].outputs.probs
