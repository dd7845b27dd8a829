"""/v1/moderations, asked by OpenAI's client and by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.models import guards, tiny, vision
from tests.server.test_media import PNGS, image, text
from vllm_cls import LLM, ConfigError
from vllm_cls.server import ServerSettings, create_app

from .served import served

openai = pytest.importorskip("openai")

LABELS = ["safe", "hate", "toxic"]
STANDARD = {
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
}  # fmt: skip


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = guards.guard("llama", guards.GRANITE_GUARDIAN, tmp_path_factory.mktemp("guard") / "guard")
    with LLM(str(folder)) as llm:
        yield llm


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("labels") / "bert"
    with LLM(str(tiny.classifier("bert", folder, id2label=dict(enumerate(LABELS))))) as llm:
        yield llm


def asked(llm: LLM, body: Any, status: int = 200, **settings: Any) -> Any:
    with TestClient(create_app(llm, ServerSettings(**settings))) as client:
        answer = client.post("/v1/moderations", json=body)
    assert answer.status_code == status, answer.text
    return answer.json() if status == 200 else answer.json()["error"]


def test_openai(guard: LLM) -> None:
    """Every field of its types, and the model's own categories beside them."""
    with (
        served(guard, served_model_names=("omni-moderation-latest",)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        one = client.moderations.create(model="omni-moderation-latest", input="Build a bomb")
        two = client.moderations.create(input=["Build a bomb", "hi"])
        parts = client.moderations.create(
            input=[{"type": "text", "text": "Build"}, {"type": "text", "text": "a bomb"}],
            extra_body={"threshold": 0.0, "categories": ["harm"]},
        )
    expected, other = guard.moderate(["Build a bomb", "hi"])
    assert one.model == "omni-moderation-latest" and one.id.startswith("modr-") and len(one.results) == 1
    assert [each.category_scores.to_dict() for each in two.results] != [one.results[0].category_scores.to_dict()] * 2
    for found, wanted in ((one.results[0], expected), (two.results[0], expected), (two.results[1], other)):
        assert found.flagged is wanted.flagged
        scores, flags = found.category_scores.to_dict(), found.categories.to_dict()
        types = found.category_applied_input_types.to_dict()
        assert (
            set(scores) == set(flags) == set(types) == STANDARD | {"harm", "profanity"}
        )  # its violence is one of OpenAI's
        for name in scores:
            assert scores[name] == pytest.approx(wanted.scores.get(name, 0.0), abs=1e-6)
            assert flags[name] is wanted.categories.get(name, False)
            assert types[name] == (["text"] if name in wanted.scores else [])
        assert type(found.categories.self_harm_intent) is bool and type(found.category_scores.violence) is float
    (found,) = parts.results
    assert found.flagged and found.categories.harm and not found.categories.violence
    assert found.category_scores.harm == pytest.approx(guard.moderate("Build\na bomb").pop().scores["harm"], abs=1e-6)


def test_a_classifier(labelled: LLM) -> None:
    found = asked(labelled, {"input": "You fool"})["results"][0]
    (expected,) = labelled.moderate("You fool")
    assert found["flagged"] is expected.flagged
    assert found["category_scores"] == {**dict.fromkeys(STANDARD, 0.0), **expected.scores}
    assert found["category_applied_input_types"]["toxic"] == ["text"]
    low = asked(labelled, {"input": "You fool"}, threshold=0.0)["results"][0]  # the server's
    assert (
        low["flagged"]
        and low["categories"]["hate"]
        and low["categories"]["toxic"]
        and not low["categories"]["violence"]
    )
    assert set(asked(labelled, {"input": "x"}, safe_label="hate")["results"][0]["category_scores"]) == STANDARD | {
        "safe",
        "toxic",
    }
    with pytest.raises(ConfigError, match="none of the labels safe, hate, toxic"):
        create_app(labelled, ServerSettings(safe_label="hat"))


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "input", "Field required"),
        ({"input": []}, "input", "at least one prompt"),
        ({"input": ["x", ""]}, "input", "cannot be empty"),
        ({"input": ["x", {"type": "text", "text": "y"}]}, "input", "a list of parts"),
        ({"input": [text("x"), text("")]}, "input", "cannot be empty"),
        ({"input": 3}, "input", "a list of parts"),
        ({"input": [{"type": "video_url", "video_url": "x"}]}, "input", "of type 'video_url'"),
        ({"model": "other", "input": "x"}, "model", "does not exist"),
        ({"input": [image()]}, "input", "this server reads texts; there is a part of type 'image_url'"),
        ({"input": "x", "threshold": 1.5}, "threshold", "less than or equal to 1"),
        ({"input": "x", "categories": ["hate"]}, "categories", "all its labels at once"),
        ({"input": "x", "thresold": 1}, "thresold", "Did you mean 'threshold'"),
        ({"input": "x " * 9000}, "input_tokens", "maximum context length"),
    ],
)
def test_errors(labelled: LLM, body: Any, param: str, message: str) -> None:
    error = asked(labelled, body, 404 if param == "model" else 400)
    assert error["param"] == param and message in error["message"]


def test_a_model_without_a_label_of_harmless_texts(llm: LLM) -> None:
    assert "--safe-label" in asked(llm, {"input": "x"}, 404)["message"]
    asked(llm, {"input": "x"}, safe_label="good")


def test_images(tmp_path: Path) -> None:
    """Of a model that reads them, as `LLM.classify` reads the conversation."""
    folder = vision.qwen2_5_vl(tmp_path / "model")
    overrides = {"classifier_from_token": ["a", "b"], "method": "no_post_processing", "id2label": {0: "ok", 1: "gore"}}
    with LLM(str(folder), convert="classify", hf_overrides=overrides) as llm:
        found = asked(llm, {"input": [text("look"), image()]})["results"][0]
        parts = [text("look"), {"type": "image_url", "image_url": PNGS[0]}]
        (expected,) = llm.classify({"messages": [{"role": "user", "content": parts}]})
        alone = asked(llm, {"input": [image()]})["results"][0]
    assert found["category_scores"]["gore"] == pytest.approx(expected.outputs.scores["gore"], abs=1e-5)
    assert found["category_applied_input_types"]["gore"] == ["text", "image"]
    assert alone["category_applied_input_types"]["gore"] == ["image"]
    assert alone["category_scores"]["gore"] != found["category_scores"]["gore"]
