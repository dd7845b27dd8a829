"""Bytes, PIL images and arrays become upright RGB images."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError, PromptError
from .items import Image

try:
    from PIL import Image as PILImage
    from PIL import ImageOps, UnidentifiedImageError
except ImportError as error:
    raise ConfigError("images need Pillow: pip install 'vllm-cls[vision]'.") from error

if TYPE_CHECKING:
    from .policy import Allowance

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_REFUSED = (
    ("SVG", lambda head: b"<svg" in head),
    ("PSD", lambda head: head.startswith(b"8BPS")),
    ("JPEG 2000", lambda head: head.startswith((b"\x00\x00\x00\x0cjP", b"\xff\x4f\xff\x51"))),
    ("AVIF", lambda head: head[4:12] in (b"ftypavif", b"ftypavis")),
    ("HEIF", lambda head: head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1")),
    ("JPEG XL", lambda head: head.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL"))),
    ("PDF", lambda head: head.startswith(b"%PDF")),
    ("ICO", lambda head: head.startswith((b"\x00\x00\x01\x00", b"\x00\x00\x02\x00"))),
    ("EPS", lambda head: head.startswith(b"%!PS")),
    ("HTML", lambda head: head.lstrip().lower().startswith((b"<!doctype html", b"<html"))),
)
_BAND = 256  # rows
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")


def from_bytes(data: bytes, allowance: Allowance) -> Image:
    """The image that encoded bytes hold: of an animation the first frame, upright by its EXIF orientation.

    Raises:
        PromptError: it has another format, is broken, too large, or has several pages.
    """
    try:
        with _decoding(), PILImage.open(io.BytesIO(data), formats=FORMATS) as image:
            allowance.check_size(*image.size)
            pages = getattr(image, "n_frames", 1)
            if image.format == "TIFF" and pages > 1:
                raise PromptError(f"a TIFF with {pages} pages is not one image; give each page by itself.")
            image.load()
            return from_pil(image, allowance)
    except UnidentifiedImageError:
        raise PromptError(f"{_kind(data)} is not read; give one of {', '.join(FORMATS)}.") from None


@contextmanager
def _decoding() -> Iterator[None]:
    """Whatever a decoder raises at bytes that it was not written for, told in one way."""
    try:
        yield
    except (PromptError, UnidentifiedImageError):
        raise
    except (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning) as error:
        raise PromptError(f"the image is too large: {error}") from error
    except Exception as error:
        raise PromptError(f"the image is broken: {str(error) or type(error).__name__}.") from error


def _kind(data: bytes) -> str:
    name = next((name for name, matches in _REFUSED if matches(data[:1024])), None)
    return f"an image as {name}" if name else "what is no image or one of another format"


def from_pil(image: PILImage.Image, allowance: Allowance) -> Image:
    """The same image upright and in RGB; what is transparent is white.

    Raises:
        PromptError: it is too large, or its pixels have no fixed range.
    """
    allowance.check_size(*image.size)
    if not image.width or not image.height:
        raise PromptError(f"an image of {image.width} × {image.height} pixels has none.")
    allowance.take_pixels(image.width * image.height)
    with _decoding():
        return _hashed(_rgb(ImageOps.exif_transpose(image)))  # never the caller's own, which may change


def _rgb(image: PILImage.Image) -> PILImage.Image:
    if image.mode.startswith("I;16"):  # PIL would cut off at 255
        wide = np.asarray(image).astype(np.uint32)
        return PILImage.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        raise PromptError(
            f"an image of mode {image.mode} is not read; give 8 or 16 bits a channel, in grey, RGB or CMYK."
        )
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        white = PILImage.new("RGBA", image.size, "white")
        return PILImage.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _hashed(image: PILImage.Image) -> Image:
    digest = hashlib.blake2b(f"image {image.width} {image.height} ".encode(), digest_size=16)
    for top in range(0, image.height, _BAND):  # not all bytes at once, which are as many as the image's own
        digest.update(image.crop((0, top, image.width, min(top + _BAND, image.height))).tobytes())
    return Image(image, digest.hexdigest())


def from_array(array: np.ndarray, allowance: Allowance) -> Image:
    """An array of uint8, `(height, width)` or `(height, width, 1 | 3 | 4)`; the fourth channel is opacity.

    Raises:
        PromptError: its shape or type is another.
    """
    if array.dtype != np.uint8:
        raise PromptError(
            f"an array of {array.dtype} is not an image; give uint8 from 0 to 255, such as (array * 255).round().astype('uint8')."
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise PromptError(
            f"an array of shape {array.shape} is not an image; give (height, width) or (height, width, 3 or 4)."
        )
    if not array.size:
        raise PromptError(f"an array of shape {array.shape} has no pixels.")
    return from_pil(PILImage.fromarray(np.ascontiguousarray(array)), allowance)


def is_pil(value: Any) -> bool:
    """Whether a value is an image of PIL."""
    return isinstance(value, PILImage.Image)
