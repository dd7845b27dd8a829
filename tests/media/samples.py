"""Small images, videos and policies of the tests."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
from PIL import Image

from vllm_cls.media.items import MediaItem
from vllm_cls.media.load import load_media
from vllm_cls.media.policy import MediaPolicy

RED, WHITE = (255, 0, 0), (255, 255, 255)
PYTHON = MediaPolicy()


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def painted(width: int = 6, height: int = 4, seed: int = 0) -> Image.Image:
    """An image whose pixels all differ."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def one(key: str, value: Any, policy: MediaPolicy = PYTHON, **options: Any) -> Any:
    """The only item that a value gives."""
    (items,) = load_media({key: value}, policy, **options).values()
    (item,) = items
    return item


def pixels(item: MediaItem) -> np.ndarray:
    return np.asarray(item.pixels)  # type: ignore[union-attr]


def greys(count: int, width: int = 32, height: int = 16) -> list[np.ndarray]:
    """Frames, each of one grey; they can be told apart after they were encoded."""
    return [np.full((height, width, 3), 10 + 240 * number // count, np.uint8) for number in range(count)]


def video(frames: list[np.ndarray], rate: int = 10, format: str = "mp4", codec: str = "mpeg4") -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for each in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(each, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def levels(item: Any) -> list[int]:
    """The grey of each frame of a video of `greys`."""
    return [round(float(frame.mean())) for frame in item.frames]
