"""`multi_modal_data`: its keys and forms, what paths may be read, and how many items there may be."""

from __future__ import annotations

import ast
import base64
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import tiny
from vllm_cls.errors import ConfigError, PromptError
from vllm_cls.media.items import Embeddings, Image, Video
from vllm_cls.media.load import load_media
from vllm_cls.media.policy import MediaPolicy

from .samples import PYTHON, encoded, greys, one, painted, pixels, video

PNG = encoded(painted())
TEXT = base64.b64encode(PNG).decode()


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "ä b%20.png"
    path.parent.mkdir()
    path.write_bytes(PNG)
    return path


def test_ways_to_name_or_hold_an_image(png: Path) -> None:
    for value in (
        png,
        str(png),
        png.as_uri(),
        png.as_uri().replace("file://", "FILE://localhost"),
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        {"bytes": PNG, "path": "name.png"},
        {"bytes": PNG, "path": None},
        {"bytes": None, "path": str(png)},
        {"path": str(png)},
        {"base64": TEXT},
        {"base64": "\n".join(TEXT[start : start + 76] for start in range(0, len(TEXT), 76))},
        f"data:image/png;base64,{TEXT}",
        f"DATA:;BASE64,{TEXT}",
    ):
        assert pixels(one("image", value)).tobytes() == painted().tobytes()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("data:image/png,abc", "must hold base64"),
        ("data:image/png;base64", "must hold base64"),
        ("data:image/png;base64,", "it is empty"),
        ("data:image/png;base64,%%%%", "not base64"),
        ({"base64": "a"}, "not base64"),
        ({"base64": 7}, "base64 is a text"),
        ({"bytes": None, "path": None}, "neither bytes nor a path"),
        (b"", "it is empty"),
        ("", "is not a file|cannot be read"),
        ("/no/such/file.png", "'/no/such/file.png' cannot be read: No such file"),
        ("a\0b", "cannot be read"),
        ("/dev/zero", "'/dev/zero' is not a file"),
        ("/", "is not a file|cannot be read"),
        ("file://host/a.png", "names no host"),
        ("file:///no/such", "cannot be read"),
    ],
)
def test_what_names_no_image(value: Any, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        one("image", value)


def test_a_pipe_does_not_hold_a_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PromptError, match="is not a file"):
        one("image", tmp_path / "pipe")


def test_a_request_reads_file_urls_of_its_folder_alone(png: Path) -> None:
    policy = MediaPolicy(allowed_local_media_path=str(png.parent), read_paths=False)
    assert one("image", png.as_uri(), policy)
    (png.parent.parent / "secret.png").write_bytes(PNG)
    (png.parent.parent / "in-side").mkdir()
    (png.parent.parent / "in-side" / "secret.png").write_bytes(PNG)
    (png.parent / "link.png").symlink_to("../secret.png")
    (png.parent / "folder").symlink_to("..")
    (png.parent / "circle").symlink_to("circle")
    base = png.parent.as_uri()
    messages = set()
    for url in (
        f"{base}/../secret.png",
        f"{base}/%2e%2e/secret.png",
        f"{base}-side/secret.png",
        f"{base}/link.png",
        f"{base}/folder/secret.png",
        f"{base}/circle",
        f"{base}/%00",
        f"{base}/secret.png",
        "file:///etc/passwd",
        "file:/etc/passwd",
    ):
        with pytest.raises(PromptError, match=r"is not a file under the folder of --allowed-local-media-path") as found:
            one("image", url, policy)
        assert str(png.parent) not in str(found.value)  # nor where that is
        messages.add(str(found.value).partition(" is ")[2])
    assert len(messages) == 1  # what is there cannot be told from what is not
    (png.parent / "inner.png").symlink_to(png.name)
    assert one("image", f"{base}/inner.png", policy)


@pytest.mark.parametrize("folder", ["", "/no/such/folder"])
def test_without_a_folder_a_request_reads_no_file(png: Path, folder: str) -> None:
    with pytest.raises(PromptError, match="--allowed-local-media-path"):
        one("image", png.as_uri(), MediaPolicy(read_paths=False, allowed_local_media_path=folder))


def test_a_request_reads_no_paths(png: Path) -> None:
    policy = MediaPolicy(allowed_local_media_path=str(png.parent), read_paths=False)
    for value in (str(png), png, {"path": str(png)}, "relative.png"):
        with pytest.raises(PromptError, match="must be a URL of data:, http:, https: or file:"):
            one("image", value, policy)
    assert one("image", {"bytes": PNG, "path": str(png)}, policy)


def test_python_can_be_kept_to_a_folder_too(png: Path) -> None:
    assert one("image", png, MediaPolicy(allowed_local_media_path=str(png.parent)))
    (other := png.parent.parent / "other").mkdir()
    with pytest.raises(PromptError, match="is not a file under '.*other'"):
        one("image", png, MediaPolicy(allowed_local_media_path=str(other)))


def test_a_link_that_takes_the_place_of_a_file_is_not_followed(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the check and the reading."""
    secret = png.parent.parent / "secret.png"
    secret.write_bytes(PNG)
    resolve = Path.resolve

    def swap(self: Path, strict: bool = False) -> Path:
        found = resolve(self, strict=strict)
        if found == png:
            png.unlink()
            png.symlink_to(secret)
        return found

    monkeypatch.setattr(Path, "resolve", swap)
    with pytest.raises(PromptError, match="is not a file under"):
        one("image", png.as_uri(), MediaPolicy(allowed_local_media_path=str(png.parent), read_paths=False))


@pytest.mark.parametrize("way", [bytes, lambda data: {"base64": base64.b64encode(data).decode()}, Path])
def test_bytes_are_bounded(way: Any, tmp_path: Path) -> None:
    data = encoded(painted(40, 40), "BMP")
    (tmp_path / "a.bmp").write_bytes(data)
    value = tmp_path / "a.bmp" if way is Path else way(data)
    assert one("image", value, MediaPolicy(max_bytes=len(data)))
    with pytest.raises(PromptError, match="bytes allowed"):
        one("image", value, MediaPolicy(max_bytes=len(data) - 1))


def test_order_is_kept_and_modalities_are_told_apart() -> None:
    found = load_media({"video": video(greys(3)), "image": [painted(seed=1), PNG]}, PYTHON)
    assert list(found) == ["image", "video"]
    assert [each.content_hash for each in found["image"]] == [
        one("image", painted(seed=seed)).content_hash for seed in (1, 0)
    ]
    assert isinstance(found["video"][0], Video)


def test_what_was_loaded_stays() -> None:
    image, embeddings = one("image", PNG), one("image_embeds", torch.ones(2, 3))
    found = load_media({"image": [image, embeddings, PNG]}, PYTHON)["image"]
    assert found[0] is image and found[1] is embeddings and isinstance(found[2], Image)
    assert isinstance(load_media({"image_embeds": [embeddings]}, PYTHON)["image"][0], Embeddings)
    film = one("video", video(greys(3)))
    assert load_media({"video": film}, PYTHON)["video"] == [film]


@pytest.mark.parametrize("data", [{}, {"image": []}, {"image": None, "video": None}, {"image_embeds": []}])
def test_nothing_gives_nothing(data: Any) -> None:
    assert load_media(data, PYTHON) == {}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"images": PNG}, "no 'images'. Did you mean 'image'"),
        ({"audio": PNG}, "no 'audio'. .*Known: image, video, image_embeds, video_embeds"),
        ({"image": PNG, "image_embeds": torch.ones(1, 2)}, "'image' or 'image_embeds', not both"),
        ({"image": [PNG, b"x", PNG]}, "^image 2 of 3: "),
        ({"video": [b"x"]}, "^video: "),
        ({"image_embeds": [torch.ones(1, 2), torch.ones(1)]}, "^image_embeds 2 of 2: "),
        ({"image": {"pixels": 1}}, "an image cannot be"),
    ],
)
def test_what_is_wrong_is_named(data: Any, said: str) -> None:
    with pytest.raises(PromptError, match=said) as found:
        load_media(data, PYTHON)
    assert found.value.param == "multi_modal_data"


@pytest.mark.parametrize("limit", [2, {"count": 2, "width": 512}])
def test_items_of_a_prompt_are_limited(limit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = MediaPolicy(limit_mm_per_prompt={"image": limit, "video": 0})
    assert len(load_media({"image": [PNG, PNG]}, policy)["image"]) == 2
    with pytest.raises(PromptError, match=r"3 items of 'image' are more than the 2 .*limit_mm_per_prompt"):
        load_media({"image": [b"not read"] * 3}, policy)
    with pytest.raises(PromptError, match="3 items of 'image'"):
        load_media({"image_embeds": torch.ones(3, 2, 2)}, policy)
    with pytest.raises(PromptError, match="1 items of 'video' are more than the 0"):
        load_media({"video": b"not read"}, policy)


@pytest.mark.parametrize(
    "limit", [{"images": 1}, {"image": -1}, {"image": "1"}, {"image": True}, {"image": {}}, {"image": 1.0}]
)
def test_limits_that_cannot_be(limit: Any) -> None:
    with pytest.raises(ConfigError, match="limit_mm_per_prompt"):
        MediaPolicy(limit_mm_per_prompt=limit)


@pytest.mark.parametrize(("library", "key"), [("PIL", "image"), ("av", "video")])
def test_a_library_that_is_missing_is_named(library: str, key: str) -> None:
    code = f"""
import sys
sys.modules[{library!r}] = None
from vllm_cls.errors import ConfigError
from vllm_cls.media.load import load_media
from vllm_cls.media.policy import MediaPolicy
for _ in range(2):
    try:
        load_media({{{key!r}: b"x"}}, MediaPolicy())
    except ConfigError as error:
        print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert (
        out.splitlines()
        == [f"{key}s need {'Pillow' if library == 'PIL' else 'PyAV'}: pip install 'vllm-cls[vision]'."] * 2
    )


def test_texts_alone_import_nothing_of_it(tmp_path: Path) -> None:
    """Not by `LLM`, nor by a job over a file, nor by a server, which says in its description that it reads texts."""
    rows, model = tmp_path / "in.jsonl", tiny.classifier("qwen2", tmp_path / "m")
    rows.write_text('{"text": "good"}\n')
    code = f"""
import sys
from starlette.testclient import TestClient
from vllm_cls import LLM, classify_file
from vllm_cls.server import create_app
with LLM({str(model)!r}, device="cpu") as llm, TestClient(create_app(llm)) as client:
    llm.classify("good")
    classify_file(llm, {str(rows)!r}, {str(tmp_path / "out.jsonl")!r})
    assert client.post("/classify", json={{"input": "good"}}).status_code == 200
    assert client.get("/openapi.json").status_code == 200
print([name for name in sys.modules if name.startswith("vllm_cls.media") or name in ("av", "httpcore")])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    modules = out.splitlines()[-1]
    assert modules == "[]" or set(ast.literal_eval(modules)) == {"httpcore"}  # of the test client


def test_each_library_is_imported_for_what_needs_it() -> None:
    code = f"""
import sys
from vllm_cls.media.load import load_media
from vllm_cls.media.policy import MediaPolicy
libraries = ("PIL", "av", "httpx", "torch", "transformers")
print([name for name in libraries if name in sys.modules])
load_media({{"image": {PNG!r}}}, MediaPolicy())
print([name for name in libraries if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["[]", "['PIL']"]


def test_a_processor_without_pillow_names_the_extra() -> None:
    code = """
import sys
from pathlib import Path
sys.modules["PIL"] = None
from vllm_cls.errors import ConfigError
from vllm_cls.media.processor import MediaProcessor
try:
    MediaProcessor(Path("."), None, None, "model")
except ConfigError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "images and videos need the extra vision: pip install 'vllm-cls[vision]'.\n"


@pytest.mark.parametrize("key", ["image", "video"])
@pytest.mark.parametrize("folder", ["", "/tmp"])
def test_base64_in_the_place_of_a_path_is_not_repeated(key: str, folder: str) -> None:
    text = base64.b64encode(encoded(painted(60, 60))).decode()
    with pytest.raises(PromptError, match="Base64 is given as {'base64': …}, or as a data: URL") as caught:
        one(key, text, MediaPolicy(allowed_local_media_path=folder))
    assert len(str(caught.value)) < 200 and text[:8] in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2, 3, dtype=torch.int32), torch.ones(3), torch.full((2, 4), math.nan), {"x": 1}, object(), "AAAA",
        {"image_embeds": torch.ones(2, 4), "image_grid_thw": torch.ones(2, 4)}, {"image_embeds": [[1.0, 2.0], [3.0]]},
        {"image_embeds": torch.ones(3, 4), "image_grid_thw": torch.tensor([[1, 2, 2], [1, 1, 1]])},
    ],
)  # fmt: skip
def test_a_message_names_its_item_once(value: Any) -> None:
    with pytest.raises(PromptError) as caught:
        one("image_embeds", value)
    assert str(caught.value).startswith("image_embeds: ")
    assert not str(caught.value).removeprefix("image_embeds: ").startswith("image_embeds"), str(caught.value)
