"""`multi_modal_data` of a prompt becomes items: read, decoded, counted, hashed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..errors import PromptError, nearest, shown
from .items import Embeddings, FrameSampling, Image, MediaItem, MediaItems, Video
from .policy import MODALITIES, Allowance, MediaPolicy
from .sampling import UniformFrames
from .sources import is_encoded, read_bytes

KEYS = (*MODALITIES, "image_embeds", "video_embeds")


def load_media(
    multi_modal_data: Mapping[str, Any],
    policy: MediaPolicy,
    sample: FrameSampling = UniformFrames(),  # noqa: B008  # frozen
) -> MediaItems:
    """The items of a prompt, by modality, each in the order given.

    Args:
        multi_modal_data: from `image`, `video`, `image_embeds` and `video_embeds` to an item or a list of items. An image is
            one of PIL, an array of uint8 `(height, width[, 3 | 4])`, a tensor of uint8 `(3 | 4, height, width)`, a path, a
            URL, bytes, or a mapping with `bytes`, `path` or `base64`. A video is a path, a URL, bytes, such a mapping, a list
            of images, an array `(frames, height, width, 3)`, or a pair of frames and their metadata. Embeddings are as
            `embeddings.from_value` reads them; `{"image": {"image_embeds": …}}`, as vLLM has it, is the same. An item that was
            loaded already stays as it is.
        policy: what may be read, and how much.
        sample: which frames are taken of an encoded video; of frames that are given, all are.

    Raises:
        PromptError: an item cannot be read or is not allowed; the message names it.
        ConfigError: a library for it is not installed.
    """
    for key in multi_modal_data:
        if key not in KEYS:
            raise PromptError(
                f"multi_modal_data has no {key!r}.{nearest(str(key), KEYS)} Known: {', '.join(KEYS)}.",
                "multi_modal_data",
            )
    allowance = Allowance(policy)
    read = partial(load_items, allowance=allowance, sample=sample)
    found: dict[str, list[MediaItem]] = {}
    for modality in MODALITIES:
        key = f"{modality}_embeds"
        plain, embedded = multi_modal_data.get(modality), multi_modal_data.get(key)
        if isinstance(plain, Mapping) and key in plain:  # so vLLM writes embeddings
            plain, embedded = embedded, plain
        if plain is not None and embedded is not None:
            raise PromptError(f"a prompt takes {modality!r} or {key!r}, not both.", "multi_modal_data")
        if plain is not None:
            values = _values(plain, modality)
            policy.check_number(modality, len(values))
            found[modality] = _read(values, read, modality)
        elif embedded is not None:
            values = list(embedded) if isinstance(embedded, (list, tuple)) else [embedded]
            found[modality] = _read(values, read, key)
            policy.check_number(modality, len(found[modality]))
    return {modality: items for modality, items in found.items() if items}


def load_items(key: str, value: Any, allowance: Allowance, sample: FrameSampling | None = None) -> list[MediaItem]:
    """The items of one value of `multi_modal_data`; embeddings may hold several.

    Args:
        key: one of `KEYS`.
        allowance: what the prompt has left.

    Raises:
        PromptError, ConfigError: as `load_media`.
    """
    if key == "image":
        return [_image(value, allowance)]
    if key == "video":
        return [_video(value, sample or UniformFrames(), allowance)]
    return list(_embeddings(value, key, allowance))


def _read(values: Sequence[Any], read: Callable[[str, Any], list[MediaItem]], name: str) -> list[MediaItem]:
    items: list[MediaItem] = []
    for number, value in enumerate(values, start=1):
        try:
            items += read(name, value)
        except PromptError as error:
            place = name if len(values) == 1 else f"{name} {number} of {len(values)}"
            raise PromptError(f"{place}: {error}", "multi_modal_data") from error
    return items


def _values(value: Any, modality: str) -> list[Any]:
    """The items that a value means: a list is several, but one of frames is a video."""
    if not isinstance(value, (list, tuple)):
        return [value]
    if modality == "video" and (_is_with_metadata(value) or (value and all(map(_is_frame, value)))):
        return [value]
    return list(value)


def _image(value: Any, allowance: Allowance) -> Image | Embeddings:
    if isinstance(value, (Image, Embeddings)):
        return value
    from . import images

    if images.is_pil(value):
        return images.from_pil(value, allowance)
    if is_encoded(value):
        return images.from_bytes(read_bytes(value, allowance), allowance)
    return images.from_array(_array(value, "an image"), allowance)


def _video(value: Any, sample: FrameSampling, allowance: Allowance) -> Video | Embeddings:
    if isinstance(value, (Video, Embeddings)):
        return value
    from . import videos

    if is_encoded(value):
        return videos.from_bytes(read_bytes(value, allowance), sample, allowance)
    frames, said = value if _is_with_metadata(value) else (value, None)
    if isinstance(frames, (list, tuple)):
        frames = [_frame(each, allowance) for each in frames]
    else:
        frames = _array(frames, "a video")
        if frames.ndim != 4:
            raise PromptError(f"an array of shape {frames.shape} is not a video; give (frames, height, width, 3).")
        allowance.take_pixels(frames.size // 3)
    return videos.from_frames(frames, said, allowance)


def _frame(value: Any, allowance: Allowance) -> np.ndarray:
    """One frame in RGB."""
    from . import images

    if not _is_frame(value):
        raise PromptError(f"a frame cannot be {shown(value)}; give images of PIL or arrays.")
    image = images.from_pil if images.is_pil(value) else images.from_array
    value = value if images.is_pil(value) else _array(value, "a frame")
    return np.asarray(image(value, allowance).pixels)


def _embeddings(value: Any, key: str, allowance: Allowance) -> Sequence[Embeddings]:
    from . import embeddings

    return [value] if isinstance(value, Embeddings) else embeddings.from_value(value, key, allowance)


def _is_with_metadata(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping) and not is_encoded(value[1])


def _is_frame(value: Any) -> bool:
    return hasattr(value, "getbands") or (_is_array(value) and value.ndim in (2, 3))


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or type(value).__module__.partition(".")[0] == "torch"


def _array(value: Any, what: str) -> np.ndarray:
    """An array, or a tensor with its channels put last as an array has them."""
    if isinstance(value, np.ndarray):
        return value
    if not _is_array(value):
        raise PromptError(
            f"{what} cannot be {shown(value)}; give a path, a URL, bytes, one of PIL, or an array of uint8."
        )
    if value.ndim not in (3, 4):
        raise PromptError(
            f"a tensor of shape {tuple(value.shape)} is not {what}; its channels come before height and width."
        )
    if str(value.dtype) != "torch.uint8":
        raise PromptError(
            f"a tensor of {value.dtype} is not {what}; give uint8 from 0 to 255. What a vision tower gave is `image_embeds`."
        )
    array: np.ndarray = value.detach().cpu().movedim(-3, -1).numpy()
    return array
