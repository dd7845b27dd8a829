"""What may be read, from where, and how much of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, PromptError, nearest
from .addresses import is_public, resolved

MODALITIES = ("image", "video")
MAX_PIXELS = 64 << 20
"""Of one image, or of one frame."""


@dataclass(frozen=True)
class MediaPolicy:
    """What the media of a prompt may be; the names are vLLM's where it has them.

    Args:
        allowed_media_domains: hosts that URLs may name, exactly; with a port (`host:8080`), that port alone. None are fetched
            from where it is empty.
        allowed_local_media_path: a folder that local files must be under, symbolic links resolved; "" is none.
        read_paths: whether a path may be read at all. Without it, only `file:` URLs are, and only under that folder.
        limit_mm_per_prompt: the most items of each modality, such as `{"image": 4, "video": 1}`; any number where one is not
            named. `{"image": {"count": 4}}` is the same.
        max_bytes: of one item as it comes, encoded.
        max_pixels: of one image, or of one frame.
        max_prompt_pixels: of all images and sampled frames of a prompt together.
        max_frames: that are taken of one video.
        max_video_seconds: that one video may last.
        timeout: seconds in which all media of a prompt must be fetched and decoded.
        resolve: from a host and a port to its addresses. Python and tests alone.
        may_connect: whether an address may be connected to. Python and tests alone.

    Raises:
        ConfigError: a limit is none.
    """

    allowed_media_domains: tuple[str, ...] = ()
    allowed_local_media_path: str = ""
    read_paths: bool = True
    limit_mm_per_prompt: Mapping[str, Any] = field(default_factory=dict)
    max_bytes: int = 64 << 20
    max_pixels: int = MAX_PIXELS
    max_prompt_pixels: int = 256 << 20
    max_frames: int = 768
    max_video_seconds: float = 3600.0
    timeout: float = 60.0
    resolve: Callable[[str, int, float], list[str]] = field(default=resolved, repr=False)
    may_connect: Callable[[str], bool] = field(default=is_public, repr=False)

    def __post_init__(self) -> None:
        for name, value in self.limit_mm_per_prompt.items():
            if name not in MODALITIES:
                raise ConfigError(f"limit_mm_per_prompt has no {name!r}.{nearest(str(name), MODALITIES)}")
            count = _count(value)
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ConfigError(f"limit_mm_per_prompt: {name} takes a number from 0; got {value!r}.")

    def check_number(self, modality: str, number: int) -> None:
        """Raise `PromptError` if a prompt may not have so many items of a modality."""
        if modality not in self.limit_mm_per_prompt:
            return
        limit = _count(self.limit_mm_per_prompt[modality])
        if number > limit:
            raise PromptError(
                f"{number} items of {modality!r} are more than the {limit} that a prompt may have (limit_mm_per_prompt).",
                "multi_modal_data",
            )


def _count(value: Any) -> Any:
    return value.get("count") if isinstance(value, Mapping) else value


class Allowance:
    """What one prompt has left of the limits of a policy."""

    def __init__(self, policy: MediaPolicy) -> None:
        self.policy = policy
        self._ends = time.monotonic() + policy.timeout
        self._pixels = policy.max_prompt_pixels

    def seconds_left(self) -> float:
        """Seconds until its time is over.

        Raises:
            PromptError: it is.
        """
        left = self._ends - time.monotonic()
        if left <= 0:
            raise PromptError(f"fetching and decoding took longer than the {self.policy.timeout:g} seconds allowed.")
        return left

    def check_size(self, width: int, height: int) -> None:
        """Raise `PromptError` if an image or a frame may not be so large."""
        if width * height > self.policy.max_pixels:
            raise PromptError(f"{width} × {height} pixels are more than the {self.policy.max_pixels:,} allowed.")

    def take_pixels(self, number: int) -> None:
        """Count pixels that are about to be held.

        Raises:
            PromptError: they are more than the prompt may have.
        """
        self.check_pixels(number)
        self._pixels -= number

    def check_pixels(self, number: int) -> None:
        """Raise `PromptError` if the prompt may not have so many pixels more."""
        if number > self._pixels:
            raise PromptError(
                f"with it the media of this prompt have more than the {self.policy.max_prompt_pixels:,} pixels allowed."
            )
