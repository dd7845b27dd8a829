"""Images as tensors `(…, channels, height, width)`: what transformers' video processors ask of torchvision, done by torch.

Names, arguments and results are torchvision's own (`torchvision.transforms.v2.functional`), of which no build exists for
every torch.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import torch


class InterpolationMode(enum.Enum):
    """How `resize` fills in pixels."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


_OF_PILLOW = {0: "NEAREST", 1: "LANCZOS", 2: "BILINEAR", 3: "BICUBIC"}
PILLOW_MODES = {number: InterpolationMode[name] for number, name in _OF_PILLOW.items()}
"""The same by Pillow's numbers."""
_SMOOTH = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC, InterpolationMode.LANCZOS)


def resize(
    image: torch.Tensor,
    size: Sequence[int],
    interpolation: InterpolationMode | int = InterpolationMode.BILINEAR,
    antialias: bool | None = True,
) -> torch.Tensor:
    """The image in `size`, height and width; bytes stay bytes."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    mode = interpolation if isinstance(interpolation, InterpolationMode) else PILLOW_MODES[int(interpolation)]
    options: dict[str, Any] = {"align_corners": False, "antialias": bool(antialias)} if mode in _SMOOTH else {}
    flat = image.reshape(-1, *image.shape[-3:])
    made = torch.nn.functional.interpolate(flat, size=list(size), mode=mode.value, **options)
    return made.reshape(*image.shape[:-2], *size)


def normalize(image: torch.Tensor, mean: Any, std: Any, inplace: bool = False) -> torch.Tensor:
    """`(image - mean) / std`, each one number, or one a channel."""
    mean, std = (torch.as_tensor(each, dtype=image.dtype, device=image.device) for each in (mean, std))
    mean, std = (each.view(-1, 1, 1) if each.ndim == 1 else each for each in (mean, std))
    return (image.sub_(mean) if inplace else image.sub(mean)).div_(std)


def pad(
    image: torch.Tensor, padding: Sequence[int], fill: float | None = 0, padding_mode: str = "constant"
) -> torch.Tensor:
    """The image within a frame, `padding` wide at its left, top, right and bottom."""
    if padding_mode != "constant":
        raise NotImplementedError(f"padding_mode={padding_mode!r}")
    left, top, right, bottom = padding
    return torch.nn.functional.pad(image, [left, right, top, bottom], value=fill or 0)


def crop(image: torch.Tensor, top: int, left: int, height: int, width: int) -> torch.Tensor:
    """A part of the image, which lies within it."""
    return image[..., top : top + height, left : left + width]


def grayscale_to_rgb(image: torch.Tensor) -> torch.Tensor:
    """One channel three times; an image of three stays as it is."""
    return image if image.shape[-3] >= 3 else image.repeat_interleave(3, dim=-3)


def to_dtype(image: torch.Tensor, dtype: torch.dtype, scale: bool = False) -> torch.Tensor:
    """The image in another type; with `scale` bytes from 0 to 255 are numbers from 0 to 1, and back."""
    if image.dtype == dtype or not scale or image.is_floating_point() == dtype.is_floating_point:
        return image.to(dtype)
    if dtype.is_floating_point:
        return image.to(dtype) * (1.0 / torch.iinfo(image.dtype).max)
    return (image * (torch.iinfo(dtype).max + 1.0 - 1e-3)).to(dtype)
