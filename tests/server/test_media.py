"""Images and videos in conversations: the server answers as `LLM` does, and refuses what it may not read."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from starlette.testclient import TestClient

from tests.media.samples import encoded, greys, one, video
from tests.models import vision
from vllm_cls import LLM, ConfigError, PromptError
from vllm_cls.media.sampling import UniformFrames

from .conftest import client_of

PICTURES = [vision.picture(24, 16, 0), vision.picture(40, 32, 1)]
FILM = video(greys(9, 32, 16), rate=2)


def url_of(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


PNGS = [url_of(encoded(each)) for each in PICTURES]


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def image(number: int = 0) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": PNGS[number]}}


def said(*parts: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": list(parts)}]


@pytest.fixture(scope="module")
def seer(sees: LLM) -> Iterator[TestClient]:
    with client_of(sees, trust_request_mm_kwargs=True, max_body_bytes=1 << 20) as client:
        yield client


def probs(client: TestClient, messages: Any, **fields: Any) -> Any:
    answer = client.post("/classify", json={"messages": messages, **fields})
    assert answer.status_code == 200, answer.text
    return pytest.approx(answer.json()["data"][0]["probs"], abs=1e-5)


def refusal(client: TestClient, messages: Any, **fields: Any) -> dict[str, Any]:
    answer = client.post("/classify", json={"messages": messages, **fields})
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def expected(llm: LLM, content: str, **data: Any) -> list[float]:
    prompt = {"prompt": f"<|im_start|>user\n{content}<|im_end|>\n", "multi_modal_data": data}
    return llm.classify(prompt)[0].outputs.probs


IMAGE, VIDEO = vision.IMAGE, vision.VIDEO


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": PNGS[0]}},
        {"type": "image_url", "image_url": {"url": PNGS[0], "detail": "auto"}},
        {"type": "image_url", "image_url": PNGS[0]},
        {"type": "input_image", "image_url": PNGS[0]},
        {"type": "input_image", "image_url": {"url": PNGS[0]}},
        {"image_url": PNGS[0]},
    ],
)
def test_ways_to_send_an_image(seer: TestClient, sees: LLM, part: Any) -> None:
    assert probs(seer, said(text("What is "), part, text(" this?"))) == expected(
        sees, f"What is {IMAGE} this?", image=PICTURES[0]
    )


def test_order_and_interleaving(seer: TestClient, sees: LLM) -> None:
    film = {"type": "video_url", "video_url": {"url": url_of(FILM, "video/mp4")}}
    messages = [
        *said(image(1), text("a"), film),
        *said(text("good"), role="assistant"),
        *said(image(0), text("b"), image(1)),
    ]
    content = f"{IMAGE}a{VIDEO}<|im_end|>\n<|im_start|>assistant\ngood<|im_end|>\n<|im_start|>user\n{IMAGE}b{IMAGE}"
    data = {"image": [PICTURES[1], PICTURES[0], PICTURES[1]], "video": FILM}
    found = probs(seer, messages)
    assert found == expected(sees, content, **data)
    assert found != expected(sees, content, **{**data, "image": [PICTURES[0], PICTURES[1], PICTURES[1]]})


def test_texts_alone_are_joined_as_ever(seer: TestClient, sees: LLM) -> None:
    assert probs(seer, said(text("a"), {"type": "input_text", "text": "b"})) == expected(sees, "a\nb")


def test_pooling_and_tokenize_and_invocations(seer: TestClient, sees: LLM) -> None:
    messages = said(image(), text("x"))
    prompt = {"prompt": f"<|im_start|>user\n{IMAGE}x<|im_end|>\n", "multi_modal_data": {"image": PICTURES[0]}}
    pooled = seer.post("/pooling", json={"messages": messages, "task": "classify"}).json()
    assert pooled["data"][0]["data"] == pytest.approx(sees.classify(prompt)[0].outputs.probs, abs=1e-5)
    ids = list(sees.classify(prompt)[0].prompt_token_ids)
    counted = seer.post("/tokenize", json={"messages": messages, "add_generation_prompt": False}).json()
    assert counted["tokens"] == ids and pooled["usage"]["prompt_tokens"] == len(ids)
    assert seer.post("/invocations", json={"messages": messages}).json()["data"][0]["probs"] == probs(seer, messages)


@pytest.mark.parametrize("modality", ["image", "video"])
def test_embeddings(seer: TestClient, sees: LLM, modality: str) -> None:
    data = torch.arange(2 * 32, dtype=torch.float32).reshape(2, 32) / 64
    sent = base64.b64encode(save({"x": data})).decode()
    grid = base64.b64encode(save({"x": torch.tensor([[1, 2, 4]])})).decode()
    kind = f"{modality}_embeds"
    part = {"type": kind, kind: {kind: sent, f"{modality}_grid_thw": grid}}
    given = {kind: {kind: data, f"{modality}_grid_thw": torch.tensor([[1, 2, 4]])}}
    place = IMAGE if modality == "image" else VIDEO
    found = probs(seer, said(part, text("a")))
    assert found == expected(sees, f"{place}a", **given)
    given[kind][kind] = data + 1
    assert found != expected(sees, f"{place}a", **given)


def test_frames_are_those_that_the_request_asks_for(seer: TestClient, sees: LLM) -> None:
    messages = said({"type": "video_url", "video_url": url_of(FILM)})
    few = probs(seer, messages, media_io_kwargs={"video": {"num_frames": 2}})
    assert few == expected(sees, VIDEO, video=one("video", FILM, sample=UniformFrames(2)))
    assert few != probs(seer, messages).expected
    assert probs(seer, messages) == expected(sees, VIDEO, video=FILM)


def test_processor_kwargs(seer: TestClient, sees: LLM) -> None:
    small = {"size": {"shortest_edge": 64, "longest_edge": 128}}
    found = probs(seer, said(image()), mm_processor_kwargs=small)
    prompt = {"prompt": f"<|im_start|>user\n{IMAGE}<|im_end|>\n", "multi_modal_data": {"image": PICTURES[0]}}
    assert found == sees.classify({**prompt, "mm_processor_kwargs": small})[0].outputs.probs
    assert found != sees.classify(prompt)[0].outputs.probs


@pytest.mark.parametrize(
    "kwargs", [{"size": {"shortest_edge": 10**9, "longest_edge": 10**10}}, {"merge_size": 1}, {"patch_size": 8}]
)
def test_processor_kwargs_that_the_model_cannot_take(seer: TestClient, kwargs: dict[str, Any]) -> None:
    assert refusal(seer, said(image()), mm_processor_kwargs=kwargs)["param"] == "mm_processor_kwargs"


@pytest.mark.parametrize("name", ["mm_processor_kwargs", "media_io_kwargs"])
def test_such_options_are_trusted_by_name(sees: LLM, seer: TestClient, name: str) -> None:
    with client_of(sees) as careful:
        error = refusal(careful, said(image()), **{name: {"video": {}}})
        assert error["param"] == name and "--trust-request-mm-kwargs" in error["message"]
        assert probs(careful, said(image()), **{name: {}}) == probs(careful, said(image()), **{name: None}).expected
    assert refusal(seer, said(text("a")), **{name: {"x": 1}})["param"] == name


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"videos": {}}, "no 'videos'. Did you mean 'video'?"),
        ({"video": {"frames": 1}}, "video takes num_frames and fps"),
        ({"video": {"num_frames": 0}}, "num_frames=0"),
        ({"video": [1]}, "video takes num_frames and fps"),
    ],
)
def test_wrong_options_of_media(seer: TestClient, kwargs: Any, message: str) -> None:
    error = refusal(seer, said({"type": "video_url", "video_url": url_of(FILM)}), media_io_kwargs=kwargs)
    assert error["param"] == "media_io_kwargs" and message in error["message"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image_url", "image_url": url_of(b"x")}, "messages[0].content[1], image_url: what is no image"),
        ({"type": "image_url", "image_url": url_of(encoded(PICTURES[0])[:90])}, "image_url: the image is broken"),
        ({"type": "image_url", "image_url": "data:image/png;base64,%"}, "not base64"),
        ({"type": "image_url", "image_url": "/etc/passwd"}, "must be a URL"),
        ({"type": "image_url", "image_url": "file:///etc/passwd"}, "--allowed-local-media-path"),
        ({"type": "image_url", "image_url": "http://127.0.0.1/a"}, "host '127.0.0.1' is not allowed"),
        ({"type": "image_url", "image_url": ""}, "messages[0].content[1]: a part of type 'image_url' holds"),
        ({"type": "image_url"}, "a part of type 'image_url' holds 'image_url'"),
        ({"type": "image_url", "image_url": {"url": 7}}, "a part of type 'image_url' holds"),
        (
            {"type": "image_url", "image_url": {"bytes": "abc", "path": "/etc/passwd"}},
            "a part of type 'image_url' holds",
        ),
        ({"type": "video_url", "video_url": url_of(b"x")}, "messages[0].content[1], video_url: the video is broken"),
        ({"type": "image_embeds", "image_embeds": "AAAA"}, "neither .npy nor safetensors"),
        ({"type": "image_embeds", "image_embeds": {"path": "/etc/passwd"}}, "must be a URL"),
        ({"type": "image_embeds", "image_embeds": 7}, "holds base64 of a tensor"),
        ({"type": "image_embeds", "image_embeds": {"x": "AAAA"}}, "takes 'image_embeds' and 'image_grid_thw'"),
        ({"type": "audio_url", "audio_url": PNGS[0]}, "a part of type 'audio_url'"),
        ({"type": "image", "image": "/etc/passwd"}, "a part of type 'image'"),
        ({"type": "text"}, "a part of type 'text'"),
        ({"type": ["image_url"]}, "a part of type"),
        ("text", "a part of type 'str'"),
    ],
)
def test_what_cannot_be_read_is_named(seer: TestClient, part: Any, message: str) -> None:
    error = refusal(seer, said(image(), part))
    assert error["param"] == "messages" and message in error["message"], error
    assert "Traceback" not in error["message"] and "/etc" not in error["message"]


@pytest.mark.parametrize("limit", [1, {"count": 1}])
def test_images_of_a_conversation_are_limited(sees: LLM, limit: Any) -> None:
    with client_of(sees, limit_mm_per_prompt={"image": limit, "video": 0}) as client:
        assert client.post("/classify", json={"messages": said(image())}).status_code == 200
        assert "2 items of 'image' are more than the 1" in refusal(client, [*said(image()), *said(image())])["message"]
        film = {"type": "video_url", "video_url": url_of(b"not read")}
        assert "1 items of 'video' are more than the 0" in refusal(client, said(film))["message"]


def test_a_limit_that_cannot_be(sees: LLM) -> None:
    with pytest.raises(ConfigError, match="limit_mm_per_prompt has no 'images'. Did you mean 'image'"):
        client_of(sees, limit_mm_per_prompt={"images": 1})


def test_a_model_without_the_files_of_its_processor(seeing: Path, tmp_path: Path) -> None:
    shutil.copytree(seeing, tmp_path / "m", ignore=shutil.ignore_patterns("*processor*"))
    with LLM(str(tmp_path / "m"), dtype="float32") as llm, client_of(llm) as client:
        assert "not read here" in refusal(client, said(image()))["message"]
        assert client.get("/openapi.json").status_code == 200
        assert client.post("/classify", json={"messages": said(text("a"))}).status_code == 200


def test_local_files_of_the_allowed_folder(sees: LLM, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(PICTURES[0]))
    part = {"type": "image_url", "image_url": (tmp_path / "a.png").as_uri()}
    with client_of(sees, allowed_local_media_path=str(tmp_path)) as client:
        assert probs(client, said(part)) == expected(sees, IMAGE, image=PICTURES[0])
        part["image_url"] = (tmp_path / "b.png").as_uri()
        error = refusal(client, said(part))
        assert "'b.png' is not a file under" in error["message"] and str(tmp_path) not in error["message"]


def test_a_template_of_the_request_writes_their_places(sees: LLM) -> None:
    template = "{% for p in messages[0].content %}{{ p.text if p.type == 'text' else '" + IMAGE + "' }}{% endfor %}"
    with client_of(sees, trust_request_chat_template=True) as client:
        found = probs(client, said(text("a "), image()), chat_template=template)
        prompt = {"prompt": f"a {IMAGE}", "multi_modal_data": {"image": PICTURES[0]}}
        assert found == sees.classify(prompt)[0].outputs.probs


def test_a_model_of_texts_refuses_and_fetches_nothing(talker: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_cls.media.load.load_items", None)
    for part in (
        image(),
        {"type": "video_url", "video_url": "http://x.test/"},
        {"type": "image_embeds", "image_embeds": "AA"},
    ):
        error = refusal(talker, said(text("a"), part))
        assert error["message"].startswith("messages[0].content[1]: this server reads texts; there is a part of type")


def test_texts_beside_images_are_counted(sees: LLM) -> None:
    with client_of(sees, max_request_tokens=1000) as client:
        assert "More than the 1000 tokens" in refusal(client, said(image(), text("a" * 17000)))["message"]


def test_the_description_says_what_a_part_may_be(seer: TestClient, talker: TestClient) -> None:
    def kinds(client: TestClient) -> set[str]:
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        content = schemas["Message"]["properties"]["content"]["anyOf"]
        (items,) = [each["items"] for each in content if each.get("type") == "array"]
        return {each["properties"]["type"]["const"] for each in items["anyOf"]}

    assert kinds(talker) == {"text"}
    assert kinds(seer) == {"text", "image_url", "input_image", "video_url", "image_embeds", "video_embeds"}


def test_options_of_llm(seeing: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(PICTURES[0]))
    small = {"size": {"shortest_edge": 64, "longest_edge": 128}}
    options: dict[str, Any] = dict(
        allowed_local_media_path=str(tmp_path), limit_mm_per_prompt={"image": 1}, mm_processor_kwargs=small,
        allowed_media_domains=["localhost"],
    )  # fmt: skip
    with LLM(str(seeing), dtype="float32", **options) as llm:

        def asked(value: Any, **more: Any) -> Any:
            (found,) = llm.classify([{"prompt": IMAGE, "multi_modal_data": {"image": value}, **more}])
            return found.outputs.probs

        by_path = asked(str(tmp_path / "a.png"))
        assert by_path == asked(PICTURES[0], mm_processor_kwargs=small)
        assert by_path != asked(PICTURES[0], mm_processor_kwargs={"size": vision.SIZE})
        for value, message in (
            ([PICTURES[0], PICTURES[0]], "2 items of 'image' are more than the 1"),
            (str(seeing / "config.json"), "is not a file under"),
            ("http://localhost/a", "not of the public internet"),
            ("http://other.test/a", "host 'other.test' is not allowed"),
        ):
            with pytest.raises(PromptError, match=message):
                asked(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit_mm_per_prompt": {"images": 1}}, "no 'images'. Did you mean"),
        ({"limit_mm_per_prompt": 4}, "limit_mm_per_prompt=4"),
        ({"allowed_media_domains": "a.test"}, "give a list"),
        ({"mm_processor_kwargs": [1]}, r"mm_processor_kwargs=\[1\]"),
    ],
)
def test_wrong_options_of_llm(seeing: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(str(seeing), **options)
