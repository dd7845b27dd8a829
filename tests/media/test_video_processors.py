"""transformers' video processors without torchvision, held to what they give with it (video_reference.json)."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import is_torchvision_available

from vllm_cls import PromptError
from vllm_cls.media import tensor_images
from vllm_cls.media.items import VideoMetadata
from vllm_cls.media.video_processors import sampled, video_processor

from . import video_reference

EXPECTED = json.loads(video_reference.FILE.read_text())


def processor(name: str, folder: Path = Path("nowhere"), **settings: Any) -> Any:
    return video_processor(folder, {"video_processor": {"video_processor_type": name, **settings}}, "")


@pytest.mark.parametrize("name", video_reference.PROCESSORS)
def test_frames_are_read_as_with_torchvision(name: str) -> None:
    """Values on the scale of one; where a processor rounds bytes in another way, a byte is a hundredth of it."""
    found, wanted = video_reference.described(processor(name)), EXPECTED[name]
    assert found.keys() == wanted.keys()
    for tensor, expected in wanted.items():
        assert found[tensor]["shape"] == expected["shape"]
        assert found[tensor]["mean"] == pytest.approx(expected["mean"], abs=1e-3)
        assert found[tensor]["values"] == pytest.approx(expected["values"], abs=0.02)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_nothing_else_finds_a_torchvision() -> None:
    processor("InternVLVideoProcessor")
    assert not [name for name in sys.modules if name.partition(".")[0] == "torchvision"]
    assert not is_torchvision_available()


@pytest.mark.parametrize("name", ["Qwen9VLVideoProcessor", "CLIPImageProcessor"])
def test_a_class_that_is_none(name: str) -> None:
    with pytest.raises(ImportError, match=f"transformers has no {name}"):
        processor(name)


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("qwen2_5_vl", "Qwen2VLVideoProcessor"),
        ("qwen3_5", "Qwen3VLVideoProcessor"),
        ("llava_onevision", "LlavaOnevisionVideoProcessor"),
    ],
)
def test_a_checkpoint_that_names_no_class(model_type: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "x", "image_mean": [0.1, 0.2, 0.3]}')
    made = video_processor(tmp_path, {}, model_type)
    assert (type(made).__name__, list(made.image_mean)) == (kind, [0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"num_frames": 4}, [0, 5, 10, 15]),
        ({"num_frames": 5}, [0, 5, 10, 15]),  # whole pairs
        ({"fps": 2}, [0, 2, 5, 7, 10, 12, 15, 17]),  # 20 frames at 5 a second last 4 seconds
        ({"fps": 0.1}, [0, 5, 10, 15]),  # at least four
    ],
)
def test_frames_are_sampled_as_transformers_does(asked: dict[str, Any], expected: list[int]) -> None:
    """By the formula of Qwen2VLVideoProcessor.sample_frames, worked out by hand."""
    assert sampled(processor("Qwen2VLVideoProcessor"), VideoMetadata(20, 5.0, 4.0), **asked) == expected


def test_what_is_asked_for_stands_in_the_place_of_the_models_own() -> None:
    """Qwen3-VL takes two frames a second; with num_frames beside it transformers would refuse."""
    found = sampled(processor("Qwen3VLVideoProcessor"), VideoMetadata(20, 5.0, 4.0), num_frames=3)
    assert found == [0, 10, 19]  # of 0, 9.5 and 19 by numpy's rounding to even


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_frames": 2, "fps": 1}, "exclude each other"),
        ({"num_frames": 40}, "no frames of this video of 20"),
        ({"fps": 0}, "fps takes a number above 0"),
        ({"num_frames": "4"}, "num_frames takes a number above 0"),
    ],
)
def test_what_cannot_be_sampled_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        sampled(processor("Qwen2VLVideoProcessor"), VideoMetadata(20, 5.0, 4.0), **asked)


def test_bytes_become_numbers_and_return() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    numbers = tensor_images.to_dtype(values, torch.float32, scale=True)
    np.testing.assert_allclose(numbers.numpy(), np.arange(256) / 255, rtol=1e-6)
    assert torch.equal(tensor_images.to_dtype(numbers, torch.uint8, scale=True), values)
