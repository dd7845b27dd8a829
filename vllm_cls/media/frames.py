"""Frames of videos as Qwen2-VL and its heirs read them. transformers' own video processors need torchvision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import PromptError, shown
from ..parsing.json_fields import NUMBER

if TYPE_CHECKING:
    import numpy as np

    from .items import VideoMetadata

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP
_LARGEST_RATIO = 200
# transformers' own defaults of Qwen2VLVideoProcessor.
_DEFAULTS: dict[str, Any] = {
    "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768},
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": _MEAN,
    "image_std": _STD,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "min_frames": 4,
    "max_frames": 768,
    "do_sample_frames": False,
    "num_frames": None,
    "fps": None,
    "cap_pixels_per_frame": False,
    "max_video_tokens": 128000,
}
PROCESSORS = ("Qwen2VLVideoProcessor",)
"""The classes of transformers whose results are given here."""


def smart_size(height: int, width: int, factor: int, fewest: int, most: int) -> tuple[int, int]:
    """Height and width of multiples of `factor`, with `fewest` to `most` pixels, near the frame's own ratio.

    Raises:
        PromptError: the frame is more than 200 times as long as it is wide.
    """
    if max(height, width) > _LARGEST_RATIO * min(height, width):
        raise PromptError(
            f"a video of {width} × {height} pixels is too narrow; the model takes ratios up to {_LARGEST_RATIO}."
        )
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    if high * wide > most:
        shrink = math.sqrt(height * width / most)
        high = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif high * wide < fewest:
        grow = math.sqrt(fewest / (height * width))
        high, wide = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return high, wide


class _Settings:
    """What a prompt may ask for, as transformers looks it up: by its annotations."""

    __annotations__ = dict.fromkeys([*_DEFAULTS, "min_pixels", "max_pixels"], Any)


class FramesProcessor:
    """In the place of transformers' video processor within its processor of texts and media.

    Args:
        settings: of video_preprocessor_config.json, or of wherever the checkpoint has them.
    """

    valid_kwargs = _Settings
    model_input_names = ("pixel_values_videos", "video_grid_thw")

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = self._merged(_DEFAULTS, settings)
        self.merge_size: int = self._settings["merge_size"]
        self.temporal_patch_size: int = self._settings["temporal_patch_size"]

    @property
    def samples(self) -> bool:
        """Whether the checkpoint says which frames are taken."""
        return bool(self._settings["do_sample_frames"])

    @staticmethod
    def _merged(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        known = {name: value for name, value in given.items() if name in _DEFAULTS and value is not None}
        size = {**before["size"], **(known.get("size") or {})}
        for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            if given.get(name) is not None:
                size[edge] = given[name]
        return {**before, **known, "size": size}

    def sample(self, metadata: VideoMetadata, **asked: Any) -> Sequence[int]:
        """The frames of a video to take.

        Args:
            asked: `fps` or `num_frames`, for this prompt.

        Raises:
            PromptError: both are asked for, one is no number, or more frames than there are.
        """
        total = metadata.total_num_frames
        rate, count = asked.get("fps"), asked.get("num_frames")
        if rate is not None and count is not None:
            raise PromptError("mm_processor_kwargs: fps and num_frames exclude each other; give one.")
        for name, value in (("fps", rate), ("num_frames", count)):
            if value is not None and not (NUMBER.holds(value) and 0 < value < math.inf):
                raise PromptError(f"mm_processor_kwargs: {name} takes a number above 0; got {shown(value)}.")
        settings = self._merged(self._settings, asked)
        if rate is None and count is None:
            if not settings["do_sample_frames"]:
                return range(total)
            rate, count = settings["fps"], settings["num_frames"]
        together = settings["temporal_patch_size"]
        if count is not None:
            count = round(count / together) * together
        elif rate is not None:
            most = math.floor(min(settings["max_frames"], total) / together) * together
            count = min(max(total / metadata.fps * rate, settings["min_frames"]), most, total)
            count = math.floor(count / together) * together
        else:
            return range(total)
        if not 0 < count <= total:
            raise PromptError(
                f"a video of {total} frames cannot be sampled to {count}; ask for fewer (num_frames, fps)."
            )
        return [int(each) for each in torch.arange(0, total, total / count)]

    def __call__(
        self, videos: Sequence[np.ndarray], video_metadata: Sequence[VideoMetadata], **asked: Any
    ) -> dict[str, Any]:
        """Patches of videos, as transformers' processor gives them.

        Args:
            videos: frames of each, `(num_frames, height, width, 3)` uint8.
            video_metadata: one a video.
            asked: settings for this prompt.

        Returns:
            `pixel_values_videos` `(num_patches, values)`, `video_grid_thw` `(num_videos, 3)`, and `video_metadata`.
        """
        settings = self._merged(self._settings, asked)
        patches, grids = zip(*(_patches(torch.from_numpy(each), settings) for each in videos), strict=True)
        return {
            "pixel_values_videos": torch.cat(patches),
            "video_grid_thw": torch.tensor(grids),
            "video_metadata": [_Metadata(each, len(video)) for each, video in zip(video_metadata, videos, strict=True)],
        }


def _patches(video: torch.Tensor, settings: Mapping[str, Any]) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Frames `(num_frames, height, width, 3)` → patches `(num_patches, values)`; frames, rows and columns of these."""
    patch, merge, together = settings["patch_size"], settings["merge_size"], settings["temporal_patch_size"]
    frames = video.permute(0, 3, 1, 2)
    values = (_resized(frames, settings) if settings["do_resize"] else frames).float()
    mean, std = (torch.tensor(settings[name]).view(1, -1, 1, 1) for name in ("image_mean", "image_std"))
    scale = settings["rescale_factor"]
    if settings["do_rescale"] and settings["do_normalize"]:  # in one step, as transformers does it
        values = (values - mean * (1.0 / scale)) / (std * (1.0 / scale))
    elif settings["do_rescale"]:
        values = values * scale
    elif settings["do_normalize"]:
        values = (values - mean) / std
    if missing := -len(values) % together:
        values = torch.cat([values, values[-1:].expand(missing, -1, -1, -1)])
    count, channels, height, width = values.shape
    grid = (count // together, height // patch, width // patch)
    blocks = values.reshape(grid[0], together, channels, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch)
    blocks = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return blocks.reshape(math.prod(grid), channels * together * patch * patch), grid


def _resized(frames: torch.Tensor, settings: Mapping[str, Any]) -> torch.Tensor:
    """Frames `(num_frames, 3, height, width)` uint8 in the size that the model reads."""
    factor, size = settings["patch_size"] * settings["merge_size"], settings["size"]
    most = size["longest_edge"]
    if settings["cap_pixels_per_frame"]:
        pixels = int(settings["max_video_tokens"] * factor * factor * 0.9)
        share = pixels * settings["temporal_patch_size"] // len(frames)
        most = max(min(most, share), int(size["shortest_edge"] * 1.05))
    target = smart_size(frames.shape[-2], frames.shape[-1], factor, size["shortest_edge"], most)
    if target == tuple(frames.shape[-2:]):
        return frames
    return torch.nn.functional.interpolate(frames, size=target, mode="bicubic", antialias=True)


class _Metadata:
    """What transformers' processors ask of a video's frames."""

    def __init__(self, metadata: VideoMetadata, num_frames: int) -> None:
        self.fps, self.total_num_frames = metadata.fps, metadata.total_num_frames
        self.frames_indices = list(metadata.frames_indices) or list(range(num_frames))

    @property
    def sampled_fps(self) -> float:
        """Frames a second of those that were taken."""
        return len(self.frames_indices) / self.total_num_frames * self.fps
