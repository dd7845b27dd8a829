"""Names of the model and its adapters; what a server says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

import vllm_cls
from vllm_cls import LLM, ConfigError, LoRARequest, ModelError

from ..conftest import client_of


@pytest.fixture(scope="module")
def adapters(llm: LLM, folders: Path) -> dict[str, str]:
    """Two adapters; the second has one label."""
    pytest.importorskip("peft")
    from tests.model.test_lora import train

    base = folders / "film-critic"
    return {
        "books": str(train(base, folders / "books", ["query", "value"], 3, seed=1)),
        "stars": str(train(base, folders / "stars", ["query"], 1, seed=2)),
    }


def test_adapters_are_models(llm: LLM, adapters: dict[str, str]) -> None:
    with client_of(llm, served_model_names=("films", "alias"), lora_modules=adapters) as client:
        listed = client.get("/v1/models").json()
        assert [(each["id"], each["parent"]) for each in listed["data"]] == [
            ("films", None), ("alias", None), ("books", "films"), ("stars", "films"),
        ]  # fmt: skip
        for name, number in (("books", 1), ("stars", 2)):
            answer = client.post("/classify", json={"input": "good", "model": name}).json()
            (expected,) = llm.classify("good", lora_request=LoRARequest(name, number, adapters[name]))
            assert answer["model"] == name
            assert answer["data"][0]["probs"] == pytest.approx(expected.outputs.probs, abs=1e-6)
        for name in ("films", "alias", None, ""):
            answer = client.post("/classify", json={"input": "good", "model": name}).json()
            (plain,) = llm.classify("good")
            assert answer["model"] == "films"
            assert answer["data"][0]["probs"] == pytest.approx(plain.outputs.probs, abs=1e-6)
        # One adapter has one label, so there are scores, and only with it.
        pair = {"text_1": "a", "text_2": "b"}
        assert client.post("/score", json={**pair, "model": "stars"}).status_code == 200
        refused = client.post("/score", json=pair)
        assert refused.status_code == 400 and "num_labels 1" in refused.json()["error"]["message"]


def test_adapters_are_read_at_the_start(llm: LLM, chatty: LLM, folders: Path, adapters: dict[str, str]) -> None:
    with pytest.raises(ModelError):
        client_of(llm, lora_modules={"none": str(folders / "nowhere")})
    with pytest.raises(ConfigError, match="enable_lora"):
        client_of(chatty, lora_modules=adapters)


def test_the_entry_of_a_model(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    (entry,) = listed["data"]
    assert listed["object"] == "list"
    assert entry["id"] == entry["root"] == "film-critic" and entry["max_model_len"] == 256
    assert entry["object"] == "model" and entry["permission"] == [] and entry["owned_by"] == "vllm-cls"


def test_where_a_model_lies_is_not_told(client: TestClient, folders: Path) -> None:
    whole = str(folders / "film-critic")
    assert client.post("/classify", json={"input": "a", "model": whole}).json()["model"] == "film-critic"
    answers = [
        client.post("/classify", json={"input": "a", "model": "b"}),
        client.get("/v1/models"),
        client.get("/docs"),
    ]
    assert not any(str(folders) in each.text for each in answers)


def test_version_and_load(client: TestClient) -> None:
    assert client.get("/version").json() == {"version": vllm_cls.__version__}
    assert client.get("/load").json() == {"server_load": 0}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/ping"),
        ("POST", "/ping"),
        ("GET", "/ready"),
        ("HEAD", "/health"),
        ("HEAD", "/ready"),
    ],
)
def test_health(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 200 and answer.content == b""
