"""Frames as Qwen2-VL reads them, held to the formulas of transformers' image processor, whose patches of a frame are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from vllm_cls import PromptError
from vllm_cls.media.frames import FramesProcessor, smart_size
from vllm_cls.media.items import VideoMetadata

from ..models.vision import film

SIZE = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}


def said(count: int, fps: float = 2.0) -> VideoMetadata:
    return VideoMetadata(count, fps, count / fps, tuple(range(count)))


def patches(frames: np.ndarray, **settings: Any) -> tuple[torch.Tensor, list[int]]:
    made = FramesProcessor({"size": SIZE, **settings})([frames], video_metadata=[said(len(frames))])
    return made["pixel_values_videos"], made["video_grid_thw"][0].tolist()


def of_image(frame: np.ndarray) -> torch.Tensor:
    """A frame's patches `(num_patches, 3, 2, 14, 14)` by transformers, the frame itself twice."""
    made = Qwen2VLImageProcessorPil(size=SIZE).preprocess([Image.fromarray(frame)], return_tensors="pt")
    return made["pixel_values"].reshape(-1, 3, 2, 14, 14)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_patches_of_frames_that_need_no_resizing(count: int) -> None:
    frames = film(count, 84, 56)
    found, grid = patches(frames)
    assert grid == [-(-count // 2), 4, 6]
    found = found.reshape(grid[0], 24, 3, 2, 14, 14)
    for index in range(2 * grid[0]):  # the last frame once more where their number is odd
        expected = of_image(frames[min(index, count - 1)])[:, :, 0]
        torch.testing.assert_close(found[index // 2, :, :, index % 2], expected, atol=1e-5, rtol=0)


def test_frames_are_resized_as_images_are() -> None:
    """torch's bicubic filter on bytes and Pillow's round alike, but for a step of 256 here and there."""
    ramp = np.linspace(0, 255, 100 * 150 * 3).reshape(100, 150, 3).astype(np.uint8)
    frames = np.stack([ramp, ramp[::-1]])
    found, grid = patches(frames)
    assert grid == [
        1,
        *(each // 14 for each in smart_resize(100, 150, 28, SIZE["shortest_edge"], SIZE["longest_edge"])),
    ]
    steps = (found.reshape(-1, 3, 2, 14, 14)[:, :, 0] - of_image(frames[0])[:, :, 0]).abs() * 255 * 0.28
    assert steps.max() < 2.5
    assert steps.mean() < 0.3


@pytest.mark.parametrize("height", [1, 13, 28, 100, 999, 4000])
@pytest.mark.parametrize("width", [17, 30, 640, 2999])
def test_sizes_are_those_of_transformers(height: int, width: int) -> None:
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(PromptError, match="too narrow"):
            smart_size(height, width, 28, 3136, 100352)
        return
    assert smart_size(height, width, 28, 3136, 100352) == smart_resize(height, width, 28, 3136, 100352)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"num_frames": 4}, [0, 5, 10, 15]),
        ({"num_frames": 5}, [0, 5, 10, 15]),  # whole pairs
        ({"fps": 2}, [0, 2, 5, 7, 10, 12, 15, 17]),  # 20 frames at 5 a second last 4 seconds
        ({"fps": 0.1}, [0, 5, 10, 15]),  # at least four
        ({}, list(range(20))),
    ],
)
def test_frames_are_sampled_as_transformers_does(asked: dict[str, Any], expected: list[int]) -> None:
    """By the formula of Qwen2VLVideoProcessor.sample_frames, worked out by hand."""
    assert list(FramesProcessor({}).sample(VideoMetadata(20, 5.0, 4.0), **asked)) == expected


@pytest.mark.parametrize(
    ("asked", "message"), [({"num_frames": 2, "fps": 1}, "exclude each other"), ({"num_frames": 40}, "of 20 frames")]
)
def test_what_cannot_be_sampled_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        FramesProcessor({}).sample(VideoMetadata(20, 5.0, 4.0), **asked)
