"""`mm_processor_kwargs` of a prompt: what a model's processor may be told, before it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import PromptError, nearest, shown
from .policy import MODALITIES

# What the model was built with: another value makes tensors that it cannot read, or reads wrongly.
_BUILT_IN = (
    "patch_size", "merge_size", "pooling_size", "kernel_size", "downsample_ratio", "downsample_factor", "downsample_mode",
    "image_seq_length", "num_channels",
)  # fmt: skip
# What is said here, whoever asks.
_OURS = (
    "device", "return_tensors", "data_format", "input_data_format", "disable_grouping", "video_metadata", "return_metadata",
    "do_sample_frames", "do_convert_rgb",
)  # fmt: skip
_SIDES = (("height", "width"), ("max_height", "max_width"))
_EDGES = ("shortest_edge", "longest_edge")


def check_options(processor: Any, kwargs: Mapping[str, Any], max_pixels: int) -> None:
    """Look at `mm_processor_kwargs`.

    Args:
        processor: of texts and media, as transformers has it.
        max_pixels: that an image may have once it is resized.

    Raises:
        PromptError: the processor has no such option, the model was built with another value, or images would be too large.
    """
    known = _names(processor)
    parts = [
        each for each in (getattr(processor, f"{name}_processor", None) for name in MODALITIES) if each is not None
    ]
    for name, value in _flat(kwargs):
        if name not in known:
            raise _wrong(f"the model's processor has no {name!r}.{nearest(name, sorted(known))}")
        if name in _OURS:
            raise _wrong(f"{name} is not for a prompt to say; leave it out.")
        if name.endswith(_BUILT_IN):
            own = [getattr(each, name) for each in parts if getattr(each, name, None) is not None]
            if value not in own:
                raise _wrong(
                    f"{name}={shown(value)}, and the model was built with {shown(own[0]) if own else 'another'}."
                )
        for part in parts:
            _check_pixels(name, value, part, max_pixels)


def check_shape(part: Any, kwargs: Mapping[str, Any], width: int, height: int, max_pixels: int) -> None:
    """Raise `PromptError` for an image that is so narrow that its longer side would grow beyond what is allowed.

    Args:
        part: the processor of images, or of videos.
    """
    size = dict(_flat(kwargs)).get("size") or getattr(part, "size", None) or {}
    size = {"shortest_edge": size} if isinstance(size, int) else size
    shortest = size.get("shortest_edge")
    if not shortest or size.get("longest_edge") or not getattr(part, "do_resize", False) or _by_area(part, max_pixels):
        return
    grown = shortest * shortest * max(width, height) / min(width, height)
    if grown > max_pixels:
        raise PromptError(
            f"{width} × {height} pixels, its shorter side made {shortest}, are more than the {max_pixels:,} allowed."
        )


def _wrong(message: str) -> PromptError:
    return PromptError(f"mm_processor_kwargs: {message}", "mm_processor_kwargs")


def _flat(kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Options, those that are given for images or for videos alone among them."""
    for name, value in kwargs.items():
        if name in [f"{each}s_kwargs" for each in MODALITIES] and isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield str(name), value


def _names(processor: Any) -> set[str]:
    """What a processor and its parts can be told, as transformers looks it up."""
    given = processor.valid_processor_kwargs.__annotations__
    names = {each for each in given if not each.endswith("_kwargs")}
    for part in MODALITIES:
        own = getattr(getattr(processor, f"{part}_processor", None), "valid_kwargs", None)
        names |= {*given[f"{part}s_kwargs"].__annotations__, *getattr(own, "__annotations__", ())}
    return names


def _check_pixels(name: str, value: Any, part: Any, max_pixels: int) -> None:
    """Raise `PromptError` for a number by which an image would have more pixels than are allowed."""
    if any(pixels > max_pixels for pixels in _pixels(name, value, part, _by_area(part, max_pixels))):
        raise _wrong(f"{name}={shown(value)} makes more than the {max_pixels:,} pixels allowed.")


def _pixels(name: str, value: Any, part: Any, by_area: bool) -> Iterator[int]:
    """How many pixels an option may make, as far as it says so."""
    if isinstance(value, Mapping):
        yield from (value[high] * value[wide] for high, wide in _SIDES if _whole(value.get(high), value.get(wide)))
        edges = [value[edge] for edge in _EDGES if _whole(value.get(edge))]
        yield from (edge if by_area else edge * edge for edge in edges)
    elif isinstance(value, (list, tuple)):  # of sizes that an image may get
        yield from (each[0] * each[1] for each in value if isinstance(each, (list, tuple)) and _whole(*each[:2]))
    elif _whole(value):
        is_edge = name.endswith("size") and not by_area
        yield value * (value if is_edge else 1 if name.endswith(("size", "pixels")) else _tile(part))


def _whole(*values: Any) -> bool:
    return len(values) > 0 and all(isinstance(each, int) and not isinstance(each, bool) for each in values)


def _by_area(part: Any, max_pixels: int) -> bool:
    """Whether the edges of a processor's sizes are numbers of pixels: those of its class would be absurd as lengths."""
    size = getattr(type(part), "size", None) or {}
    numbers = [size.get(edge) for edge in _EDGES]
    return any(each and each > math.isqrt(max_pixels) for each in numbers)


def _tile(part: Any) -> int:
    """Pixels of an image as a processor makes it, of which a number of tiles is a multiple; 1 where sizes vary."""
    size = getattr(part, "size", None) or {}
    return int((size.get("height") or 1) * (size.get("width") or 1))
