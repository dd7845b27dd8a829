"""transformers' video processors. They want torchvision; where it is not installed, `tensor_images` takes its place."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import json
import math
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..compat.transformers_calls import reason
from ..errors import PromptError, shown
from ..parsing.json_fields import NUMBER
from . import tensor_images

if TYPE_CHECKING:
    from .items import VideoMetadata

_NAMED = re.compile(r'\("([\w-]+)", \{"torchvision": "(\w+VideoProcessor)"\}\)')
_ASKED = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2", "torchvision.transforms.functional",
          "torchvision.transforms.v2.functional")  # fmt: skip
_CHECKS = ("is_torchvision_available", "is_torchvision_v2_available")
_lock = threading.Lock()


@functools.cache
def _mapping() -> tuple[dict[str, str], dict[str, str]]:
    """By model type the class that reads its videos, and by class the model type whose folder holds it.

    As it is written in transformers' files: its import leaves the names out where torchvision is not installed.
    """
    import transformers.models.auto

    (folder,) = transformers.models.auto.__path__
    own, others = (
        dict(_NAMED.findall((Path(folder) / name).read_text(encoding="utf-8")))
        for name in ("auto_mappings.py", "video_processing_auto.py")
    )
    return {**own, **others}, {kind: model_type for model_type, kind in own.items()}


def video_processor(folder: Path, settings: Mapping[str, Any], model_type: str) -> Any:
    """What reads a model's videos, as transformers makes it of the checkpoint's files.

    Args:
        settings: of the processor, which may hold those for videos.
        model_type: of the model.

    Raises:
        ImportError: transformers has no class for it, or one that wants of torchvision what `tensor_images` has not.
    """
    found: Mapping[str, Any] = settings.get("video_processor") or {}
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if not found and (folder / name).is_file():
            found = json.loads((folder / name).read_text(encoding="utf-8"))
    names, _ = _mapping()
    return _class(found.get("video_processor_type") or names.get(model_type))(**found)


def _class(name: str | None) -> Any:
    _, model_types = _mapping()
    if name not in model_types:
        raise ImportError(f"transformers has no {name}" if name else "transformers has no class for them")
    module = "transformers.models.{0}.video_processing_{0}".format(model_types[name])
    with _lock:
        if importlib.util.find_spec("torchvision") is not None:
            return getattr(importlib.import_module(module), name)
        with _in_place_of_torchvision():
            return getattr(importlib.import_module(module), name)


def sampled(processor: Any, metadata: VideoMetadata, **asked: Any) -> Sequence[int]:
    """The frames of a video to take, by the rule of its processor.

    Args:
        asked: `fps` or `num_frames`, for this prompt; each in the place of both of the processor's own.

    Raises:
        PromptError: both are asked for, one is no number, or the processor refuses it.
    """
    if len(asked) > 1:
        raise PromptError("mm_processor_kwargs: fps and num_frames exclude each other; give one.")
    for name, value in asked.items():
        if not (NUMBER.holds(value) and 0 < value < math.inf):
            raise PromptError(f"mm_processor_kwargs: {name} takes a number above 0; got {shown(value)}.")
    own = {name: getattr(processor, name, None) for name in processor.valid_kwargs.__annotations__}
    if asked:
        own |= {"fps": None, "num_frames": None, **asked}
    try:
        found = processor.sample_frames(metadata=of_transformers(metadata), **own)
    except Exception as error:  # at numbers that it was not written for
        raise PromptError(
            f"the model's processor takes no frames of this video of {metadata.total_num_frames}: {reason(error)}"
        ) from error
    return [int(each) for each in found]


def of_transformers(metadata: VideoMetadata) -> Any:
    """What transformers calls a video's metadata."""
    from transformers.video_utils import VideoMetadata

    return VideoMetadata(
        total_num_frames=metadata.total_num_frames, fps=metadata.fps, duration=metadata.duration,
        frames_indices=list(metadata.frames_indices),
    )  # fmt: skip


@contextmanager
def _in_place_of_torchvision() -> Iterator[None]:
    """While modules of transformers are imported, they find torchvision's names. Others never do."""
    import transformers.utils
    from transformers import image_processing_backends, video_processing_utils

    for own in (image_processing_backends, video_processing_utils):
        own.tvF = tensor_images
    image_processing_backends.pil_torch_interpolation_mapping = tensor_images.PILLOW_MODES
    image_processing_backends.is_torchvision_greater_or_equal = lambda *_: True  # has LANCZOS
    before = {name: getattr(transformers.utils, name) for name in _CHECKS}
    try:
        sys.modules.update({name: _module(name) for name in _ASKED})
        for name in _CHECKS:
            setattr(transformers.utils, name, lambda: True)
        yield
    finally:
        for name in _ASKED:
            del sys.modules[name]
        for name, check in before.items():
            setattr(transformers.utils, name, check)


def _module(name: str) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.__path__ = []
    vars(made).update({each: value for each, value in vars(tensor_images).items() if not each.startswith("_")})
    made.functional = tensor_images  # type: ignore[attr-defined]
    return made
