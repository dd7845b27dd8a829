"""What a prompt holds beside its text, decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image as PILImage


@dataclass(frozen=True, eq=False)
class Image:
    """A still image.

    Args:
        pixels: RGB, upright (its EXIF rotation is applied).
        content_hash: of the size and the pixels; equal images have the same one, however they were encoded.
    """

    pixels: PILImage.Image
    content_hash: str


@dataclass(frozen=True)
class VideoMetadata:
    """What a container says of its video stream, and which of its frames were taken.

    Args:
        total_num_frames: in the container, as counted while decoding.
        fps: frames a second.
        duration: seconds.
        frames_indices: the frames that were taken, ascending.
    """

    total_num_frames: int
    fps: float
    duration: float
    frames_indices: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Video:
    """A video's sampled frames.

    Args:
        frames: RGB, uint8, `(num_frames, height, width, 3)`.
        content_hash: of the shape, the frames and which they were.
    """

    frames: np.ndarray
    metadata: VideoMetadata
    content_hash: str


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What the vision tower would have given, computed by the caller.

    Args:
        data: `(num_tokens, hidden)` in float32.
        grid_thw: frames, rows and columns of patches, `(num_items, 3)`, for models whose positions need them.
    """

    data: torch.Tensor
    grid_thw: torch.Tensor | None
    content_hash: str


MediaItem = Image | Video | Embeddings
MediaItems = Mapping[str, Sequence[MediaItem]]
"""By modality, `image` or `video`, in the order in which the prompt names them."""

FrameSampling = Callable[[VideoMetadata], Sequence[int]]
"""From a video's metadata to the indices of the frames to take, ascending."""
