"""Which frames of a video are taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError
from .items import VideoMetadata

NUM_FRAMES = 32


@dataclass(frozen=True)
class UniformFrames:
    """Frames at equal distances, the first and the last among them, as vLLM takes them.

    Args:
        num_frames: the most that are taken; -1 is no limit.
        fps: the most a second of the video; -1 is no limit.

    Raises:
        ConfigError: a value is none of these.
    """

    num_frames: int = NUM_FRAMES
    fps: float = -1

    def __post_init__(self) -> None:
        if not _is_number(self.num_frames, int) or (self.num_frames < 1 and self.num_frames != -1):
            raise ConfigError(f"num_frames={self.num_frames!r} takes a number from 1, or -1 for all.")
        if not _is_number(self.fps, (int, float)) or (not 0 < self.fps < math.inf and self.fps != -1):
            raise ConfigError(f"fps={self.fps!r} takes a number above 0, or -1 for all.")

    def __call__(self, metadata: VideoMetadata) -> Sequence[int]:
        total = metadata.total_num_frames
        number = total if self.num_frames == -1 else min(self.num_frames, total)
        if self.fps > 0:
            number = min(number, math.floor(metadata.duration * self.fps))
        return tuple(map(int, np.linspace(0, total - 1, max(1, number), dtype=int)))


def _is_number(value: Any, kinds: Any) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)
