"""Images and videos of strangers: addresses that lead inside, files outside, bombs, decoders that nobody asked for.

What a request may hold is loaded here as the server loads it, in a process with little memory.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .conftest import Target

ROOM = 700 << 20
"""Bytes of address space beyond what the libraries take: an image of the largest allowed size has them, a bomb has not."""
LOADER = """
import json, resource, sys
from vllm_cls.errors import PromptError
from vllm_cls.media import embeddings, images, load, policy, videos

given = json.load(sys.stdin)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + given["room"],) * 2)
for settings, key, value in given["media"]:
    try:
        load.load_media({key: value}, policy.MediaPolicy(**settings))
        print(json.dumps("loaded"), flush=True)
    except PromptError as error:
        print(json.dumps(str(error)), flush=True)
"""
LIMITS = {"read_paths": False, "max_prompt_pixels": 64 << 20, "timeout": 20.0}
"""As the server's."""

Case = tuple[str, Any, dict[str, Any]]


def load(cases: Sequence[Case]) -> list[str]:
    """What becomes of each medium: "loaded", or why not."""
    media = [[{**LIMITS, **settings}, key, value] for key, value, settings in cases]
    given = json.dumps({"media": media, "room": ROOM})
    done = subprocess.run([sys.executable, "-c", LOADER], input=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def url(data: bytes) -> str:
    return "data:;base64," + base64.b64encode(data).decode()


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def png_of_much_text() -> bytes:
    """A pixel, and text that unpacks to gigabytes."""
    packed = zlib.compress(bytes(64 << 20), 9)
    texts = [chunk(b"zTXt", b"a%d\0\0" % number + packed) for number in range(40)]
    return png(1, 1, *texts, chunk(b"IDAT", zlib.compress(bytes(4))))


def gif_of(width: int, height: int) -> bytes:
    """A screen of one pixel, on which lies a frame of this size."""
    data = bytearray(saved(Image.new("L", (1, 1)), "GIF"))
    place = data.rindex(b",", 0, len(data) - 2)
    struct.pack_into("<HH", data, place + 5, width, height)
    return bytes(data)


def tiff_of(width: int, height: int) -> bytes:
    data = bytearray(saved(Image.new("RGB", (1, 1)), "TIFF"))
    (place,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, place)
    for number in range(count):
        at = place + 2 + 12 * number
        tag = struct.unpack_from("<H", data, at)[0]
        if tag in (256, 257):
            struct.pack_into("<HII", data, at + 2, 4, 1, width if tag == 256 else height)
    return bytes(data)


def many_pages() -> bytes:
    pages = [Image.new("1", (8, 8)) for _ in range(200)]
    return saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])


def webp_of(width: int, height: int) -> bytes:
    """An animation whose canvas has this size."""
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = bytearray(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    place = data.index(b"VP8X") + 12
    data[place : place + 3] = (width - 1).to_bytes(3, "little")
    data[place + 3 : place + 6] = (height - 1).to_bytes(3, "little")
    return bytes(data)


def bmp_of(width: int, height: int) -> bytes:
    data = bytearray(saved(Image.new("RGB", (1, 1)), "BMP"))
    struct.pack_into("<ii", data, 18, width, height)
    return bytes(data)


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(saved(Image.new("RGB", (8, 8)), "JPEG"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG, 60,000 squared": lambda: png(60_000, 60_000, chunk(b"IDAT", zlib.compress(bytes(1 << 20), 9))),
    "PNG, as large as it goes": lambda: png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", b"")),
    "PNG, just too large": lambda: png(8193, 8192, chunk(b"IDAT", zlib.compress(bytes(1 << 20), 9))),
    "GIF, 65,535 squared": lambda: gif_of(65_535, 65_535),
    "TIFF, 100,000 squared": lambda: tiff_of(100_000, 100_000),
    "TIFF of 200 pages": many_pages,
    "WebP, 16,384 squared": lambda: webp_of(16_384, 16_384),
    "BMP, 50,000 squared": lambda: bmp_of(50_000, 50_000),
    "JPEG, 65,500 squared": lambda: jpeg_of(65_500, 65_500),
}
UNASKED: dict[str, bytes] = {
    "JPEG 2000": saved(Image.new("RGB", (64, 64)), "JPEG2000"),
    "JPEG 2000, bare": b"\xff\x4f\xff\x51" + bytes(200),
    "PSD": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 30_000, 30_000, 8, 3) + bytes(200),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "PDF": b"%PDF-1.7\n" + bytes(100),
    "ICO": saved(Image.new("RGB", (16, 16)), "ICO"),
    "AVIF": saved(Image.new("RGB", (16, 16)), "AVIF"),
    "TGA": saved(Image.new("RGB", (16, 16)), "TGA"),
    "PCX": saved(Image.new("RGB", (16, 16)), "PCX"),
    "PPM": b"P6\n60000 60000\n255\n",
    "FITS": b"SIMPLE  =                    T" + bytes(2880),
}
PLAYLISTS: dict[str, bytes] = {
    "HLS": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "HLS over http": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile 'file:///etc/passwd'\n",
    "DASH": b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><BaseURL>http://127.0.0.1:1/</BaseURL></MPD>",
    "SDP": b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=a\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 5004 RTP/AVP 96\r\n",
    "subtitles": b"1\n00:00:00,000 --> 00:00:09,000\nhello\n" * 50,
}


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def pickles(made: Path) -> list[bytes]:
    import torch

    file = io.BytesIO()
    torch.save(Harmful(made), file)
    return [file.getvalue(), *(pickle.dumps(Harmful(made), protocol) for protocol in range(6))]


def lying_tensors() -> list[bytes]:
    """Headers that promise much."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 1 << 62]}}).encode()
    described = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 4), }"
    return [
        struct.pack("<Q", len(header)) + header + bytes(64),
        struct.pack("<Q", 1 << 60) + bytes(64),
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(described)) + described + bytes(64),
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + bytes(64),
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 20_000) + b"(" * 20_000,
    ]


INSIDE = [
    "http://127.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://0/",
    "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://169.254.169.254/latest/meta-data/",
    "http://10.0.0.1/", "http://192.168.0.1/", "http://100.64.0.1/", "http://localhost/",
]  # fmt: skip
ODD = [
    "http://good.test\\@127.0.0.1/", "http://good.test@127.0.0.1/", "http://127.0.0.1#@good.test/",
    "http://127.0.0.1\\.good.test/", "http://127.0.0.1?good.test", "http://good.test:80@127.0.0.1/",
    "http://good.test%2f@127.0.0.1/", "http://good.test\t.127.0.0.1/", "http://good.test\r\n@127.0.0.1/",
    "http:\\\\127.0.0.1\\good.test", "http:/127.0.0.1/", "http://ｇood.test/", "http://good。test/", "file://good.test/etc/passwd",
    "file:///etc/passwd", "FILE:/etc/passwd", "gopher://good.test/", "http+unix://good.test/", "/etc/passwd", "../etc/passwd",
    "\\\\good.test\\a",
]  # fmt: skip
OUTSIDE = ["link.png", "folder/a.png", "../out/a.png", "%2e%2e/out/a.png", "folder/../a.png", "pipe", ".", "none"]


def folder_with_links(path: Path) -> Path:
    inside, outside = path / "in", path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "a.png").write_bytes(saved(Image.new("RGB", (1, 1)), "PNG"))
    (inside / "a.png").write_bytes((outside / "a.png").read_bytes())
    (inside / "link.png").symlink_to(outside / "a.png")
    (inside / "folder").symlink_to(outside)
    os.mkfifo(inside / "pipe")
    return inside


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str]]]:
    """What became of all of them, by kind, in one process: each with its name."""
    made = tmp_path_factory.mktemp("media") / "made"
    inside = folder_with_links(tmp_path_factory.mktemp("links"))
    hosts = [each.split("//")[1].split("/")[0] for each in INSIDE]
    flat = url(saved(Image.new("1", (8192, 4096)), "PNG"))
    largest = url(saved(Image.new("RGB", (8192, 8192), "red"), "PNG"))
    kinds: dict[str, list[tuple[str, Case]]] = {
        "good": [
            ("largest", ("image", largest, {})),
            ("small", ("image", url(saved(Image.new("L", (9, 9)), "GIF")), {})),
        ],
        "bombs": [(name, ("image", url(make()), {})) for name, make in BOMBS.items()],
        "text": [("text", ("image", url(png_of_much_text()), {}))],
        "unasked": [(name, ("image", url(data), {})) for name, data in UNASKED.items()],
        "playlists": [(name, ("video", url(data), {})) for name, data in PLAYLISTS.items()],
        "many": [("200 images", ("image", [flat] * 200, {}))],
        "pickles": [(str(made), ("image_embeds", base64.b64encode(each).decode(), {})) for each in pickles(made)],
        "tensors": [("tensor", ("image_embeds", base64.b64encode(each).decode(), {})) for each in lying_tensors()],
        "inside": [(each, ("image", each, {"allowed_media_domains": hosts})) for each in INSIDE],
        "not allowed": [(each, ("image", each, {"allowed_media_domains": ["good.test"]})) for each in [*INSIDE, *ODD]],
        "links": [
            (name, ("image", f"{inside.as_uri()}/{name}", {"allowed_local_media_path": str(inside)}))
            for name in ["a.png", *OUTSIDE]
        ],
    }
    said = iter(load([case for cases in kinds.values() for _, case in cases]))
    return {kind: [(name, next(said)) for name, _ in cases] for kind, cases in kinds.items()}


Found = dict[str, list[tuple[str, str]]]


def check(found: list[tuple[str, str]], *reasons: str) -> None:
    assert found
    for name, said in found:
        assert any(each in said for each in reasons), (name, said)


def test_bombs_of_images(found: Found) -> None:
    """The largest that is allowed has room in the process that refuses them, so its memory is no reason of its own."""
    assert [said for _, said in found["good"]] == ["loaded", "loaded"]
    check(found["bombs"], "pixels allowed", "allowed.", "is too large", "pages", "the image is broken")
    assert not any("MemoryError" in said for _, said in found["bombs"])


def test_text_within_an_image_is_not_unpacked_without_end(found: Found) -> None:
    check(found["text"], "the image is broken")


def test_formats_that_nobody_asked_for(found: Found) -> None:
    check(found["unasked"], "is not read; give one of PNG, JPEG")


def test_lists_of_other_files_are_no_videos(found: Found) -> None:
    check(found["playlists"], "broken, or in none of the containers")


def test_many_images_are_counted_together(found: Found) -> None:
    """Each is small as it comes, and allowed by itself."""
    check(
        found["many"], "image 3 of 200: with it the media of this prompt have more than the 67,108,864 pixels allowed"
    )


def test_no_pickle_is_read(found: Found) -> None:
    check(found["pickles"], "it is a pickle", "neither .npy nor safetensors")
    assert not any(Path(name).exists() for name, _ in found["pickles"])


def test_headers_of_tensors_that_promise_much(found: Found) -> None:
    check(found["tensors"], "neither .npy nor safetensors", "the .npy cannot be read")


def test_addresses_that_lead_inside(found: Found) -> None:
    """Though whoever runs the server allows their names: a name may be made to lead anywhere."""
    check(found["inside"], "not of the public internet")


def test_odd_addresses(found: Found) -> None:
    reasons = "not allowed", "backslash", "user name", "is not one", "is not a URL", "must be a URL", "is not fetched"
    check(found["not allowed"], *reasons, "--allowed-local-media-path", "names no host")


def test_links_out_of_the_folder(found: Found) -> None:
    assert found["links"][0][1] == "loaded"
    check(found["links"][1:], "is not a file")


def test_a_model_of_texts_reads_none(server: Target) -> None:
    for address in [*INSIDE, *ODD, url(BOMBS["PNG, just too large"]())]:
        for part in ({"type": "image_url", "image_url": {"url": address}}, {"type": "video_url", "video_url": address}):
            answer = server.ask("/classify", {"messages": [{"role": "user", "content": [part]}]})
            assert answer.status_code == 400 and "this server reads texts" in answer.json()["error"]["message"]
