"""The requests with images and videos that vLLM's examples and documentation show, as they stand there.

Only what their addresses hold is ours: no request leaves this machine, and a small file stands for each.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import save
from starlette.testclient import TestClient

from tests.media.samples import encoded, greys, video
from tests.models import vision
from vllm_cls import LLM

from .conftest import client_of

ASSETS = "https://vllm-public-assets.s3.us-west-2.amazonaws.com/"
CAT = f"{ASSETS}multimodal_asset/cat_snow.jpg"
BOARDWALK = f"{ASSETS}vision_model_images/2560px-Gfp-wisconsin-madison-the-nature-boardwalk.jpg"
DUCK, LION = f"{ASSETS}multimodal_asset/duck.jpg", f"{ASSETS}multimodal_asset/lion.jpg"
BUNNY = "http://commondatastorage.googleapis.com/gtv-videos-bucket/sample/ForBiggerFun.mp4"
TRAFFIC = "https://www.bogotobogo.com/python/OpenCV_Python/images/mean_shift_tracking/slow_traffic_small.mp4"
HOSTS = ("vllm-public-assets.s3.us-west-2.amazonaws.com", "www.bogotobogo.com", "commondatastorage.googleapis.com")

WEB = {
    CAT: encoded(vision.picture(24, 16, 0)),
    BOARDWALK: encoded(vision.picture(40, 32, 1)),
    DUCK: encoded(vision.picture(16, 16, 2)),
    LION: encoded(vision.picture(32, 24, 3)),
    BUNNY: video(greys(9, 32, 16), rate=2),
    TRAFFIC: video(greys(7, 16, 32), rate=2),
}
CAT_BASE64 = f"data:image/jpeg;base64,{base64.b64encode(WEB[CAT]).decode()}"
EMBEDS, GRID = torch.arange(2 * 32, dtype=torch.float32).reshape(2, 32) / 64, torch.tensor([[1, 2, 4]])


def packed(tensor: torch.Tensor) -> str:
    """Where vLLM's example sends a pickle, which is refused: safetensors."""
    return base64.b64encode(save({"x": tensor})).decode()


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


PRODUCT = "This product was excellent and exceeded my expectations"
HELPFUL: dict[str, Any] = {"role": "system", "content": "You are a helpful assistant."}
IMAGE, VIDEO = vision.IMAGE, vision.VIDEO

# By request: the messages, the text of the turns after `<|im_start|>`, and the media, as `LLM` takes them.
REQUESTS: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "a text": (
        [
            {"role": "assistant", "content": "Please classify this text request."},
            {"role": "user", "content": PRODUCT},
        ],
        ["assistant\nPlease classify this text request.", f"user\n{PRODUCT}"],
        {},
    ),
    "a text as a part": (
        user(text("Please classify this text request.")),
        ["user\nPlease classify this text request."],
        {},
    ),
    "an image by its URL": (
        user(text("Please classify this image."), {"type": "image_url", "image_url": {"url": CAT}}),
        [f"user\nPlease classify this image.{IMAGE}"],
        {"image": WEB[CAT]},
    ),
    "an image in base64": (
        user(text("Please classify this image."), {"type": "image_url", "image_url": {"url": CAT_BASE64}}),
        [f"user\nPlease classify this image.{IMAGE}"],
        {"image": WEB[CAT]},
    ),
    "a video by its URL": (
        user(text("Please classify this video."), {"type": "video_url", "video_url": {"url": TRAFFIC}}),
        [f"user\nPlease classify this video.{VIDEO}"],
        {"video": WEB[TRAFFIC]},
    ),
    "an image with a uuid": (
        user(
            text("What’s in this image?"),
            {"type": "image_url", "image_url": {"url": BOARDWALK}, "uuid": BOARDWALK},
        ),
        [f"user\nWhat’s in this image?{IMAGE}"],
        {"image": WEB[BOARDWALK]},
    ),
    "two images": (
        user(
            text("What are the animals in these images?"),
            {"type": "image_url", "image_url": {"url": DUCK}, "uuid": DUCK},
            {"type": "image_url", "image_url": {"url": LION}, "uuid": LION},
        ),
        [f"user\nWhat are the animals in these images?{IMAGE}{IMAGE}"],
        {"image": [WEB[DUCK], WEB[LION]]},
    ),
    "a video with a uuid": (
        user(text("What's in this video?"), {"type": "video_url", "video_url": {"url": BUNNY}, "uuid": BUNNY}),
        [f"user\nWhat's in this video?{VIDEO}"],
        {"video": WEB[BUNNY]},
    ),
    "embeddings with their grid": (
        [
            HELPFUL,
            *user(
                text("What's in this image?"),
                {
                    "type": "image_embeds",
                    "image_embeds": {"image_embeds": packed(EMBEDS), "image_grid_thw": packed(GRID)},
                    "uuid": CAT,
                },
            ),
        ],
        ["system\nYou are a helpful assistant.", f"user\nWhat's in this image?{IMAGE}"],
        {"image": {"image_embeds": EMBEDS, "image_grid_thw": GRID}},
    ),
}


@pytest.fixture(scope="module")
def replay(sees: LLM) -> Iterator[TestClient]:
    with (
        pytest.MonkeyPatch.context() as patch,
        client_of(sees, allowed_media_domains=HOSTS, limit_mm_per_prompt={"video": 1}) as client,
    ):
        patch.setattr("vllm_cls.media.fetch.fetch", lambda url, allowance: WEB[url])
        yield client


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("route", ["/classify", "/pooling", "/invocations"])
def test_a_documented_request(replay: TestClient, sees: LLM, name: str, route: str) -> None:
    messages, turns, data = REQUESTS[name]
    model = replay.get("/v1/models").json()["data"][0]["id"]
    answer = replay.post(route, json={"model": model, "messages": messages})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    prompt = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns)
    (expected,) = sees.classify({"prompt": prompt, **({"multi_modal_data": data} if data else {})})
    assert (found["object"], found["model"]) == ("list", model)
    (row,) = found["data"]
    probs = row["data"] if route == "/pooling" else row["probs"]
    assert probs == pytest.approx(expected.outputs.probs, abs=1e-5)
    assert found["usage"]["prompt_tokens"] == len(expected.prompt_token_ids)


@pytest.mark.parametrize("kind", ["image_url", "image_embeds"])
def test_a_uuid_without_its_image(replay: TestClient, kind: str) -> None:
    """vLLM looks into its cache, and refuses what is not there; nothing is kept by a uuid here."""
    part = {"type": kind, kind: None, "uuid": CAT}
    answer = replay.post("/classify", json={"messages": user(text("a"), part)})
    assert answer.status_code == 400
    assert f"a part of type '{kind}' holds" in answer.json()["error"]["message"]


def test_options_of_images(sees: LLM) -> None:
    """No option is passed over in silence."""
    part = {"type": "image_url", "image_url": {"url": CAT_BASE64}}
    with client_of(sees, trust_request_mm_kwargs=True) as client:
        asked = {"image": {"rgba_background_color": [0, 0, 0]}}
        answer = client.post("/classify", json={"messages": user(part), "media_io_kwargs": asked})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "media_io_kwargs"
    assert "image takes no options" in answer.json()["error"]["message"]
