"""Videos: frames are counted, not believed; the sampled ones are those of the indices."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from transformers.video_utils import VideoMetadata as TheirMetadata
from transformers.video_utils import read_video_pyav

from vllm_cls.errors import ConfigError, PromptError
from vllm_cls.media.items import Video, VideoMetadata
from vllm_cls.media.policy import MediaPolicy
from vllm_cls.media.sampling import UniformFrames

from .samples import greys, levels, one, video

MP4 = video(greys(25))


def every(metadata: VideoMetadata) -> Sequence[int]:
    return range(metadata.total_num_frames)


def sampled(data: Any, sample: Any = every, policy: MediaPolicy | None = None) -> Video:
    item: Video = one("video", data, policy or MediaPolicy(), sample=sample)
    return item


@pytest.mark.parametrize("indices", [(0,), (24,), (0, 12, 24), (3, 4), tuple(range(25))])
def test_the_frames_are_those_that_transformers_reads(indices: tuple[int, ...], tmp_path: Any) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(MP4)

    def choose(metadata: TheirMetadata, **_: Any) -> list[int]:
        return list(indices)

    frames, theirs = read_video_pyav(str(path), choose)
    ours = sampled(path, lambda metadata: indices)
    assert (ours.frames == frames).all() and ours.frames.dtype == np.uint8
    assert ours.metadata == VideoMetadata(theirs.total_num_frames, theirs.fps, theirs.duration, indices)


@pytest.mark.parametrize(
    ("format", "codec"), [("mp4", "h264"), ("webm", "libvpx-vp9"), ("matroska", "ffv1"), ("avi", "mpeg4")]
)
def test_containers_and_codecs(format: str, codec: str) -> None:
    item = sampled(video(greys(9), format=format, codec=codec))
    assert item.metadata.total_num_frames == 9 and item.metadata.fps == 10
    assert levels(item) == pytest.approx([int(frame[0, 0, 0]) for frame in greys(9)], abs=4)


def lying(number: int) -> bytes:
    """The same video, whose header says another number of frames: `stsz` has their number."""
    place = MP4.index(b"stts") + 4  # version, entries, then (count, duration)
    data = bytearray(MP4)
    assert struct.unpack_from(">II", data, place + 4) == (1, 25)
    struct.pack_into(">I", data, place + 8, number)
    return bytes(data)


@pytest.mark.parametrize("number", [1, 7, 24, 26, 1000, 10**9])
def test_a_header_that_lies(number: int) -> None:
    assert av.open(io.BytesIO(lying(number))).streams.video[0].frames == number
    honest, item = sampled(MP4, UniformFrames(5)), sampled(lying(number), UniformFrames(5))
    assert item.metadata.total_num_frames == 25
    assert item.metadata.frames_indices == honest.metadata.frames_indices
    assert (item.frames == honest.frames).all()


@pytest.mark.parametrize("number", [1, 7])
def test_fewer_frames_than_the_header_promises(number: int) -> None:
    data = bytearray(MP4)
    struct.pack_into(">I", data, MP4.index(b"stsz") + 12, number)
    assert av.open(io.BytesIO(data)).streams.video[0].frames == 25
    item, honest = sampled(bytes(data), UniformFrames(5)), sampled(MP4, lambda metadata: range(number))
    assert item.metadata.total_num_frames == number
    assert (item.frames == honest.frames[list(item.metadata.frames_indices)]).all()


def test_a_right_header_costs_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    open_ = av.open
    monkeypatch.setattr(av, "open", lambda *args, **options: opened.append(1) or open_(*args, **options))
    sampled(MP4, UniformFrames(5))
    assert len(opened) == 2  # its header, and its frames
    sampled(lying(26), UniformFrames(5))
    assert len(opened) == 5


def test_a_rotated_video_is_upright() -> None:
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:, :32] = 255  # its left half
    data = bytearray(video([frame] * 3))
    matrix = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    for place, value in enumerate((0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)):  # a quarter turn clockwise
        struct.pack_into(">i", data, matrix + 4 * place, value)
    upright = sampled(bytes(data)).frames
    assert upright.shape == (3, 64, 32, 3)
    assert upright[:, :24].mean() > 240 and upright[:, 40:].mean() < 15  # left has become top


@pytest.mark.parametrize(
    ("sample", "fps", "total", "indices"),
    [
        (UniformFrames(), 10, 25, tuple(range(25))),
        (UniformFrames(), 10, 1000, tuple(np.linspace(0, 999, 32, dtype=int))),
        (UniformFrames(4), 10, 25, (0, 8, 16, 24)),
        (UniformFrames(1), 10, 25, (0,)),
        (UniformFrames(-1, fps=2), 10, 25, (0, 6, 12, 18, 24)),
        (UniformFrames(3, fps=2), 10, 25, (0, 12, 24)),
        (UniformFrames(-1, fps=0.01), 10, 25, (0,)),
        (UniformFrames(-1), 10, 3, (0, 1, 2)),
    ],
)
def test_uniform_frames(sample: UniformFrames, fps: float, total: int, indices: tuple[int, ...]) -> None:
    assert tuple(sample(VideoMetadata(total, fps, total / fps))) == indices


@pytest.mark.parametrize(
    "options", [{"num_frames": 0}, {"num_frames": True}, {"num_frames": "4"}, {"fps": 0}, {"fps": float("nan")}]
)
def test_sampling_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        UniformFrames(**options)


@pytest.mark.parametrize("indices", [(), (-1,), (25,), (3, 1)])
def test_frames_that_are_not_there(indices: tuple[int, ...]) -> None:
    with pytest.raises(PromptError, match="cannot be taken"):
        sampled(MP4, lambda metadata: indices)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_frames": 24}, "25 frames to take are more than the 24 allowed"),
        ({"max_pixels": 511}, "32 × 16 pixels are more than the 511 allowed"),
        ({"max_prompt_pixels": 25 * 512 - 1}, "more than the 12,799 pixels"),
        ({"max_video_seconds": 2}, "lasts longer than the 2 seconds"),
        ({"max_bytes": 100}, "more than the 100 bytes"),
        ({"timeout": 1e-9}, "took longer than"),
    ],
)
def test_limits(limits: dict[str, Any], said: str) -> None:
    with pytest.raises(PromptError, match=said):
        sampled(MP4, policy=MediaPolicy(**limits))


def test_time_is_looked_at_between_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("vllm_cls.media.policy.time.monotonic", lambda: next(clock))
    with pytest.raises(PromptError, match="took longer than the 20 seconds"):
        sampled(MP4, policy=MediaPolicy(timeout=20))


def test_what_is_just_allowed() -> None:
    limits = MediaPolicy(
        max_frames=25, max_pixels=512, max_prompt_pixels=25 * 512, max_video_seconds=2.5, max_bytes=len(MP4)
    )
    assert len(sampled(MP4, policy=limits).frames) == 25


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5])
def test_truncated_videos(share: float) -> None:
    with pytest.raises(PromptError, match="^video: (the video is broken|there is no video)"):
        sampled(MP4[: int(len(MP4) * share)])


@pytest.mark.parametrize(
    "data",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
        b"v=0\nm=video 5004 RTP/AVP 96\n",
        b"no video at all" * 100,
        b"\0",
    ],
)
def test_lists_of_other_files_are_not_opened(data: bytes) -> None:
    with pytest.raises(PromptError, match="broken, or in none of the containers"):
        sampled(data)


def test_containers_that_are_not_listed_are_refused() -> None:
    with pytest.raises(PromptError, match="none of the containers"):
        sampled(video(greys(3), format="nut", codec="mpeg4"))
    with pytest.raises(PromptError, match="coded as .* is not read"):
        sampled(video(greys(3), format="avi", codec="wmv1"))


def test_a_codec_that_nobody_knows() -> None:
    with pytest.raises(PromptError, match="coded as nothing known is not read"):
        sampled(video(greys(3), format="avi").replace(b"FMP4", b"ZZZZ"))


def test_frames_are_taken_as_they_are() -> None:
    frames = greys(5)
    array = np.stack(frames)
    for way in (array, frames, [Image.fromarray(each) for each in frames], [array], (array, {"fps": 24})):
        item = sampled(way, UniformFrames(2))
        assert (item.frames == array).all()
        assert item.metadata == VideoMetadata(5, 24, 5 / 24, (0, 1, 2, 3, 4))  # what transformers takes without fps
    assert len({sampled(each).content_hash for each in (array, frames, array[::-1], array[:4])}) == 3


def test_frames_with_metadata() -> None:
    item = sampled(
        (np.stack(greys(3)), {"fps": 2.0, "total_num_frames": 90, "frames_indices": [0, 40, 89], "duration": 45})
    )
    assert item.metadata == VideoMetadata(90, 2.0, 45.0, (0, 40, 89))
    assert item.content_hash != sampled(np.stack(greys(3))).content_hash


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ((np.stack(greys(3)), {"frames_indices": [0, 1]}), "does not fit its 3 frames"),
        ((np.stack(greys(3)), {"framerate": 1}), "no 'framerate'. Did you mean"),
        ((np.stack(greys(3)), {"fps": "many"}), "is not one"),
        (np.stack(greys(3)) / 255, "array of float64"),
        (np.zeros((0, 2, 2, 3), np.uint8), "a video without frames"),
        (np.zeros((2, 2), np.uint8), r"shape \(2, 2\) is not a video"),
        ([greys(1)[0], greys(1, 8, 8)[0]], "different sizes"),
        ([greys(1)[0], "x"], "video 1 of 2: an array of shape"),
        (7, "a video cannot be 7"),
    ],
)
def test_what_is_no_video(value: Any, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        sampled(value)


def test_frames_of_a_list_are_counted_too() -> None:
    with pytest.raises(PromptError, match="3 frames are more than the 2 allowed"):
        sampled(greys(3), policy=MediaPolicy(max_frames=2))
    with pytest.raises(PromptError, match="more than the 1,000 pixels"):
        sampled(greys(3), policy=MediaPolicy(max_prompt_pixels=1000))
    with pytest.raises(PromptError, match="more than the 1,000 pixels"):
        sampled(np.stack(greys(3)), policy=MediaPolicy(max_prompt_pixels=1000))
