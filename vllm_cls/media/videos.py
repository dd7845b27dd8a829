"""Bytes, frames and arrays become a video's sampled frames."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError, PromptError, nearest, shown
from .items import FrameSampling, Video, VideoMetadata

try:
    import av
except ImportError as error:
    raise ConfigError("videos need PyAV: pip install 'vllm-cls[vision]'.") from error

if TYPE_CHECKING:
    from .policy import Allowance

# Not all that FFmpeg knows: some formats are lists of other files and addresses, which it would open.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf,gif"
_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
_CODECS = (
    "h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4", "mpeg2video", "mpeg1video", "h263", "mjpeg",
    "theora", "gif", "ffv1", "rawvideo", "prores", "msmpeg4", "wmv2",
)  # fmt: skip
_METADATA = (
    "total_num_frames",
    "fps",
    "duration",
    "frames_indices",
    "video_backend",
    "width",
    "height",
    "do_sample_frames",
)
_FPS_OF_FRAMES = 24.0
"""Of frames that come without one, as transformers takes them."""


def from_bytes(data: bytes, sample: FrameSampling, allowance: Allowance) -> Video:
    """The sampled frames of an encoded video.

    Frames are counted by decoding all of them. What the container says of their number is a guess, with which the frames
    are taken in the same pass; where it was wrong, a second pass takes the right ones.

    Raises:
        PromptError: it is broken, too large or too long, or `sample` asks for frames that it lacks.
    """
    fps, said = _header(data, allowance)
    guess = _chosen(sample, _metadata(said, fps), allowance) if said else ()
    taken, counted = _decoded(data, guess, allowance)
    metadata = _metadata(counted, fps)
    indices = _chosen(sample, metadata, allowance)
    if indices != guess or len(taken) != len(indices):
        taken, again = _decoded(data, indices, allowance)
        if again != counted:
            raise PromptError("the video does not decode to the same frames twice.")
    video = _video(_stacked(taken), replace(metadata, frames_indices=indices), allowance)
    allowance.take_pixels(video.frames.size // 3)
    return video


def _metadata(number: int, fps: float) -> VideoMetadata:
    return VideoMetadata(number, fps, number / fps)


def _header(data: bytes, allowance: Allowance) -> tuple[float, int]:
    """Frames a second, and how many frames the container says that it has: 0 where it does not, or says too many."""
    with _opened(data, allowance) as (_, stream):
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        if not 0 < fps <= 1000:
            fps = _FPS_OF_FRAMES
        said = stream.frames or int(float(stream.duration or 0) * float(stream.time_base or 0) * fps)
        return fps, said if 0 < said <= allowance.policy.max_video_seconds * fps else 0


def _chosen(sample: FrameSampling, metadata: VideoMetadata, allowance: Allowance) -> tuple[int, ...]:
    indices = tuple(int(each) for each in sample(metadata))
    if len(indices) > allowance.policy.max_frames:
        raise PromptError(f"{len(indices)} frames to take are more than the {allowance.policy.max_frames} allowed.")
    ascending = all(first <= second for first, second in pairwise(indices))
    if not indices or not ascending or not 0 <= indices[0] <= indices[-1] < metadata.total_num_frames:
        raise PromptError(f"of {metadata.total_num_frames} frames, {indices[:5]} … cannot be taken.")
    return indices


def _decoded(data: bytes, indices: Sequence[int], allowance: Allowance) -> tuple[list[np.ndarray], int]:
    """The frames of these indices, as far as there are such, and how many frames there are."""
    wanted = Counter(indices)
    taken: list[np.ndarray] = []
    count = 0
    for frame in _frames(data, allowance):
        if count in wanted:
            allowance.check_pixels(len(indices) * frame.width * frame.height)
            upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            taken += [upright] * wanted[count]
        count += 1
    if not count:
        raise PromptError("the video has no frames.")
    return taken, count


def _frames(data: bytes, allowance: Allowance) -> Iterator[Any]:
    """All frames, decoded."""
    longest = allowance.policy.max_video_seconds
    with _opened(data, allowance) as (container, stream):
        first: float | None = None
        for frame in container.decode(stream):
            allowance.seconds_left()
            allowance.check_size(frame.width, frame.height)
            if frame.time is not None:
                first = frame.time if first is None else first
                if frame.time - first > longest:
                    raise PromptError(f"the video lasts longer than the {longest:g} seconds allowed.")
            yield frame


@contextmanager
def _opened(data: bytes, allowance: Allowance) -> Iterator[tuple[Any, Any]]:
    """The container and its first stream of pictures."""
    try:
        with av.open(
            io.BytesIO(data), options=_OPTIONS, io_open=_refused, timeout=allowance.seconds_left()
        ) as container:
            if not container.streams.video:
                raise PromptError("there is no video in it.")
            stream = container.streams.video[0]
            codec = stream.codec_context
            name = getattr(
                codec, "name", "nothing known"
            )  # None where FFmpeg has no decoder, whatever PyAV's types say
            if name not in _CODECS:
                raise PromptError(f"a video coded as {name} is not read.")
            allowance.check_size(codec.width, codec.height)
            # Before it makes room for a frame; coded sizes are rounded up, and the size itself is checked behind it.
            codec.options = {"max_pixels": str(4 * allowance.policy.max_pixels + 65536)}
            yield container, stream
    except (av.error.FFmpegError, OSError, ValueError, RuntimeError, MemoryError) as error:
        if isinstance(error, PromptError):
            raise
        raise PromptError(
            f"the video is broken, or in none of the containers read (MP4, WebM, Matroska, AVI, MPEG …): {_reason(error)}."
        ) from error


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")


def _refused(url: str, flags: int, options: Any) -> Any:
    raise PermissionError("a video names another file, which is not opened")


def from_frames(frames: Sequence[np.ndarray], said: Mapping[str, Any] | None, allowance: Allowance) -> Video:
    """The video that these frames are, all of them.

    Args:
        frames: RGB, uint8, `(height, width, 3)`, all of one size; whoever calls has counted their pixels.
        said: vLLM's metadata of them, `fps`, `total_num_frames`, `frames_indices`, `duration`, as far as they are known.

    Raises:
        PromptError: there are none, too many, or they are no video.
    """
    if len(frames) > allowance.policy.max_frames:
        raise PromptError(f"{len(frames)} frames are more than the {allowance.policy.max_frames} allowed.")
    return _video(_stacked(frames), _metadata_said(len(frames), said or {}), allowance)


def _metadata_said(number: int, said: Mapping[str, Any]) -> VideoMetadata:
    for name in said:
        if name not in _METADATA:
            raise PromptError(f"a video's metadata has no {name!r}.{nearest(str(name), _METADATA)}")
    try:
        indices = tuple(int(each) for each in said.get("frames_indices") or range(number))
        total = int(said.get("total_num_frames") or max(number, indices[-1] + 1))
        fps = float(said.get("fps") or _FPS_OF_FRAMES)
        duration = float(said.get("duration") or total / fps)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise PromptError(f"the video's metadata is not one: {error}.") from error
    if len(indices) != number or not 0 <= indices[0] <= indices[-1] < total or not 0 < fps < 1e6:
        raise PromptError(f"the video's metadata does not fit its {number} frames: {shown(dict(said))}.")
    return VideoMetadata(total, fps, duration, indices)


def _stacked(frames: Sequence[np.ndarray]) -> np.ndarray:
    sizes = {each.shape for each in frames}
    if not sizes:
        raise PromptError("a video without frames.")
    if len(sizes) > 1:
        raise PromptError(f"its frames have different sizes: {shown(sorted(each[:2] for each in sizes))}.")
    return np.ascontiguousarray(np.stack(frames))


def _video(frames: np.ndarray, metadata: VideoMetadata, allowance: Allowance) -> Video:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise PromptError(
            f"an array of {frames.dtype} and shape {frames.shape} is not a video; give uint8, (frames, height, width, 3)."
        )
    allowance.check_size(frames.shape[2], frames.shape[1])
    digest = hashlib.blake2b(f"video {frames.shape} {metadata}".encode(), digest_size=16)
    digest.update(frames.data)
    return Video(frames, metadata, digest.hexdigest())
