"""Images and videos of requests: fetched and decoded in threads of their own, within the limits of server and request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, PromptError, nearest
from ..errors import RequestError
from ..protocol.parts import MediaPart, media_in
from ..protocol.prompts import ChatFields
from ..served_model import ServedModel
from ..settings import ServerSettings
from .request_context import seconds_left

if TYPE_CHECKING:
    from starlette.requests import Request

    from ...media.items import FrameSampling, MediaItem
    from ...media.policy import MediaPolicy

    Read = Mapping[MediaPart, Sequence[MediaItem]]

_PROMPT_PIXELS = 64 << 20
"""Of one conversation together: 192 MiB once they are decoded."""
_SAMPLING = ("num_frames", "fps")


async def with_media(
    model: ServedModel, request: Request, asked: ChatFields, prompt: Mapping[str, Any]
) -> dict[str, Any]:
    """A conversation whose images and videos are read, where it has any.

    Raises:
        RequestError: one cannot be read, or is not allowed; or the model reads none.
    """
    parts = media_in(prompt["messages"])
    _check_options(model.settings, asked, bool(parts))
    if not parts:
        return dict(prompt)
    items = await items_of(model, request, parts, asked)
    made = {**prompt, "messages": [_with_items(each, items) for each in prompt["messages"]]}
    return {**made, "mm_processor_kwargs": asked.mm_processor_kwargs} if asked.mm_processor_kwargs else made


async def items_of(
    model: ServedModel,
    request: Request,
    parts: Sequence[MediaPart],
    asked: ChatFields | None = None,
    param: str = "messages",
) -> Read:
    """What parts of a request hold, fetched and decoded.

    Args:
        asked: says how videos are read; None leaves it to the model.
        param: the field of the request, for errors.

    Raises:
        RequestError: as of `with_media`.
    """
    try:
        _check_modalities(model, parts)
        asked = asked or ChatFields.model_construct(messages=[])
        seconds = seconds_left(request.scope["state"])
        work = asyncio.get_running_loop().run_in_executor(model.media_threads, _read, model, asked, parts, seconds)
        return await work
    except RequestError as error:
        named = param if error.param == "messages" else error.param
        raise RequestError(str(error), named, error.status) from error


def policy_of(settings: ServerSettings, seconds: float | None = None) -> MediaPolicy:
    """What requests may name and hold; `seconds` are what one has left.

    Raises:
        ConfigError: a setting is wrong.
    """
    from ...media.policy import MediaPolicy

    made = MediaPolicy(
        allowed_media_domains=settings.allowed_media_domains,
        allowed_local_media_path=settings.allowed_local_media_path,
        read_paths=False,
        limit_mm_per_prompt=settings.limit_mm_per_prompt,
        max_prompt_pixels=_PROMPT_PIXELS,
    )
    return made if seconds is None else replace(made, timeout=min(made.timeout, seconds))


def _check_options(settings: ServerSettings, asked: ChatFields, has_media: bool) -> None:
    for name in ("mm_processor_kwargs", "media_io_kwargs"):
        if getattr(asked, name) and not settings.trust_request_mm_kwargs:
            raise RequestError(f"{name} from a request is refused (--trust-request-mm-kwargs allows it).", name)
        if getattr(asked, name) and not has_media:
            raise RequestError(f"{name} is for images and videos, which these messages lack.", name)


def _check_modalities(model: ServedModel, parts: Sequence[MediaPart]) -> None:
    for part in parts:
        if part.modality not in model.modalities:
            known = " and ".join(f"{each}s" for each in ("text", *model.modalities))
            raise RequestError(
                f"{part.place}: this server reads {known}; there is a part of type {part.kind!r}.", "messages"
            )


def _read(model: ServedModel, asked: ChatFields, parts: Sequence[MediaPart], seconds: float | None) -> Read:
    """Runs in a thread: what each part holds, in its order."""
    from ...media.load import load_items
    from ...media.policy import Allowance

    allowance = Allowance(policy_of(model.settings, seconds))
    counts = {each.modality: 0 for each in parts}
    sample = _sampling(model, asked, any(each.key == "video" for each in parts))
    found: dict[MediaPart, Sequence[MediaItem]] = {}
    for part in parts:
        try:
            counts[part.modality] += 1
            allowance.policy.check_number(part.modality, counts[part.modality])
            found[part] = load_items(part.key, part.value, allowance, sample)
            counts[part.modality] += len(found[part]) - 1
            allowance.policy.check_number(part.modality, counts[part.modality])
        except PromptError as error:
            raise RequestError(f"{part.place}, {part.kind}: {error}", "messages") from error
    return found


def _sampling(model: ServedModel, asked: ChatFields, has_videos: bool) -> FrameSampling | None:
    """Which frames are taken of videos: as the request says, or as the model's processor would."""
    from ...media.sampling import UniformFrames

    asked_of = asked.media_io_kwargs or {}
    for name in asked_of:
        if name not in ("image", "video"):
            raise RequestError(
                f"media_io_kwargs has no {name!r}.{nearest(name, ('image', 'video'))}", "media_io_kwargs"
            )
    if asked_of.get("image"):
        raise RequestError("media_io_kwargs: image takes no options here.", "media_io_kwargs")
    options = asked_of.get("video")
    if not has_videos:
        return None
    if not options:
        assert model.llm.llm.media is not None  # it reads videos
        return model.llm.llm.media.sampling(asked.mm_processor_kwargs or {})
    if not isinstance(options, Mapping) or not options.keys() <= set(_SAMPLING):
        raise RequestError(f"media_io_kwargs: video takes {' and '.join(_SAMPLING)}.", "media_io_kwargs")
    try:
        return UniformFrames(**options)
    except ConfigError as error:
        raise RequestError(f"media_io_kwargs: {error}", "media_io_kwargs") from error


def _with_items(message: Mapping[str, Any], items: Read) -> dict[str, Any]:
    """A message whose parts hold what was read, as `LLM` takes them."""
    if not isinstance(message.get("content"), list):
        return dict(message)
    return {**message, "content": filled(message["content"], items)}


def filled(content: Sequence[Any], items: Read) -> list[Any]:
    """Parts of a message that hold what was read."""
    made: list[Any] = []
    for part in content:
        made += (
            [{"type": part.modality, part.modality: each} for each in items[part]]
            if isinstance(part, MediaPart)
            else [part]
        )
    return made
