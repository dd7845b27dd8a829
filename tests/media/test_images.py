"""Images in every mode and format come out upright and in RGB; what is broken or was not asked for is refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.image_utils import load_image

from vllm_cls.errors import PromptError
from vllm_cls.media.policy import MediaPolicy

from .samples import PYTHON, RED, WHITE, encoded, one, painted, pixels


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK"])
def test_formats_and_modes_are_those_of_pillow(format: str, mode: str) -> None:
    image = painted(40, 30).convert(mode)
    if format == "JPEG" and mode == "P":
        image = image.convert("L")
    if (format, mode) in (
        ("BMP", "CMYK"),
        ("PNG", "CMYK"),
        ("GIF", "CMYK"),
        ("WEBP", "CMYK"),
        ("WEBP", "1"),
        ("WEBP", "P"),
    ):
        image = image.convert("RGB")
    data = encoded(image, format)
    assert (pixels(one("image", data)) == np.asarray(load_image(Image.open(io.BytesIO(data))))).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    image, exif = painted(), Image.Exif()
    exif[0x0112] = orientation
    item = one("image", encoded(image, exif=exif))
    image.getexif()[0x0112] = orientation
    assert (pixels(item) == np.asarray(ImageOps.exif_transpose(image))).all()
    assert item.pixels.size == ((4, 6) if orientation > 4 else (6, 4))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_is_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (*RED, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image = image.convert(mode)
    first, second = pixels(one("image", image))[0]
    assert tuple(second) == WHITE and tuple(first) == (RED if mode != "LA" else (76, 76, 76))


def test_a_half_transparent_pixel_is_mixed_with_white() -> None:
    assert pixels(one("image", Image.new("RGBA", (1, 1), (0, 0, 0, 51)))).tolist() == [[[204, 204, 204]]]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_a_palette_with_transparency(transparency: Any) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 0, 0])
    image.putpixel((1, 0), 1)
    assert pixels(one("image", encoded(image, transparency=transparency))).tolist() == [[list(RED), list(WHITE)]]


def test_a_transparent_colour_of_an_rgb_image() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), (1, 2, 3))
    assert pixels(one("image", encoded(image, transparency=(1, 2, 3)))).tolist() == [[list(RED), list(WHITE)]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_keep_their_range(format: str) -> None:
    wide = np.array([[0, 257, 32768, 65535]], np.uint16)
    assert pixels(one("image", encoded(Image.fromarray(wide), format)))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_range_are_refused(mode: str) -> None:
    with pytest.raises(PromptError, match=f"mode {mode} is not read"):
        one("image", Image.new(mode, (2, 2)))


@pytest.mark.parametrize("size", [(1, 1), (1, 10000), (10000, 1)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    image = painted(*size)
    assert (pixels(one("image", encoded(image))) == np.asarray(image)).all()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, WHITE)]
    data = encoded(
        frames[0], format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
    )
    assert Image.open(io.BytesIO(data)).n_frames == 2  # type: ignore[attr-defined]
    assert (pixels(one("image", data)) == RED).all()


def test_a_tiff_with_pages_is_refused() -> None:
    pages = [Image.new("RGB", (2, 2), colour) for colour in (RED, WHITE, RED)]
    with pytest.raises(PromptError, match="a TIFF with 3 pages"):
        one("image", encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_images_are_refused(format: str, share: float) -> None:
    data = encoded(painted(64, 64), format)
    with pytest.raises(PromptError, match="^image: (the image is broken|what is no image)"):
        one("image", data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "SVG"),
        (b"8BPS\0\1" + bytes(40), "PSD"),
        (encoded(painted(), "JPEG2000"), "JPEG 2000"),
        (encoded(painted(), "AVIF"), "AVIF"),
        (encoded(painted(), "ICO"), "ICO"),
        (encoded(painted(), "EPS"), "EPS"),
        (b"<!DOCTYPE html><p>Not found", "HTML"),
        (encoded(painted(), "PPM"), "no image or one of another format"),
    ],
)  # fmt: skip
def test_formats_that_nobody_asked_for(data: bytes, name: str) -> None:
    with pytest.raises(PromptError, match=rf"{name} is not read; give one of PNG, JPEG"):
        one("image", data)


def png_of(width: int, height: int, data: bytes) -> bytes:
    """A PNG whose header says its size, whatever its pixels are."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    for width, height in ((101, 100), (10100, 1)):
        with pytest.raises(PromptError, match=f"{width} × {height} pixels are more than the 10,000 allowed"):
            one("image", png_of(width, height, b""), MediaPolicy(max_pixels=10_000))
    with pytest.raises(PromptError, match="image is too large|pixels are more than"):
        one("image", png_of(60_000, 60_000, b""))


def test_pixels_of_a_prompt_are_counted_together() -> None:
    policy = MediaPolicy(max_prompt_pixels=99)
    assert one("image", painted(9, 11), policy)
    with pytest.raises(
        PromptError, match="^image 2 of 2: with it the media of this prompt have more than the 99 pixels"
    ):
        one("image", [painted(5, 10), painted(5, 10)], policy)


def test_equal_images_have_one_hash_however_they_are_encoded() -> None:
    image = painted()
    ways = [image, encoded(image), encoded(image, "BMP"), encoded(image, "WEBP", lossless=True), np.asarray(image)]
    assert len({one("image", each).content_hash for each in ways}) == 1
    tall = image.copy().resize((4, 6))
    tall.frombytes(image.tobytes())
    others = [painted(seed=1), tall]
    assert len({one("image", each).content_hash for each in [image, *others]}) == 3


def test_a_loaded_image_does_not_follow_the_callers() -> None:
    image = painted()
    item, before = one("image", image), image.tobytes()
    image.putpixel((0, 0), RED)
    assert item.pixels.tobytes() == before


def test_arrays_and_tensors() -> None:
    import torch

    array = np.asarray(painted())
    assert (pixels(one("image", array)) == array).all()
    assert (pixels(one("image", torch.from_numpy(array.copy()).permute(2, 0, 1))) == array).all()
    assert pixels(one("image", array[:, :, 0])).shape == (4, 6, 3)
    assert (pixels(one("image", np.dstack([array, np.zeros((4, 6), np.uint8)]))) == 255).all()
    for wrong, said in (
        (array / 255, "array of float64 is not an image"),
        (array.astype(np.int64), "array of int64"),
        (array[None], r"shape \(1, 4, 6, 3\)"),
        (array[:0], "has no pixels"),
        (torch.rand(3, 4, 6), "tensor of torch.float32 is not an image"),
        (torch.rand(3, 4, 6).bfloat16(), "tensor of torch.bfloat16"),
        (torch.zeros(7, dtype=torch.uint8), r"tensor of shape \(7,\)"),
        (5, "an image cannot be 5"),
    ):
        with pytest.raises(PromptError, match=said):
            one("image", wrong)


def test_a_broken_image_of_pil_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(encoded(painted(64, 64))[:200])
    with Image.open(path) as image, pytest.raises(PromptError, match="the image is broken"):
        one("image", image, PYTHON)
