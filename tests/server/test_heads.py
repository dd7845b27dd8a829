"""Several heads with names behind the server, in its client and in jobs over files that run there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from tests.models import tiny
from vllm_cls import LLM, Client, ConfigError, PoolingParams, classify_file, convert, score_file

from .conftest import client_of

TEXTS = ["The film was good", "a boring end", "What are the best practices?"]
HEADS: dict[str, dict[str, Any]] = {
    "topic": {"head": "random", "labels": ["film", "code", "end"]},
    "verdict": {"head": "two-way", "label_tokens": "no= bad,yes= good"},
    "length": {"head": "random", "num_labels": 1, "problem_type": "regression"},
}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("several")
    model = tiny.causal_lm("qwen2", folder / "lm", max_position_embeddings=256)
    for name, options in HEADS.items():
        convert(str(model), folder / name, head_name=name, score_template="concat", **options)
        model = folder / name
    with LLM(str(model), device="cpu") as llm:
        yield llm


@pytest.fixture(scope="module")
def client(several: LLM) -> Iterator[TestClient]:
    with client_of(several, threshold=0.0) as client:
        yield client


def asked(client: TestClient, path: str, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_request_names_its_head_or_takes_all(several: LLM, client: TestClient) -> None:
    outputs = several.classify(TEXTS)
    for name in (None, *HEADS):
        found = asked(client, "/classify", input=TEXTS, head_name=name, logits=True)["data"]
        for each, output in zip(found, outputs, strict=True):
            wanted = output.heads[name or "topic"]
            assert each["probs"] == pytest.approx(wanted.probs, abs=1e-6)
            assert each["logits"] == pytest.approx(wanted.logits, abs=1e-6)
            assert "heads" not in each
    before = several.counters.num_forwards
    (found,) = asked(client, "/classify", input="a boring end now", heads=True, scores=True)["data"]
    assert several.counters.num_forwards == before + 1
    assert list(found["heads"]) == list(HEADS)
    assert found["heads"]["topic"] == {name: found[name] for name in ("label", "probs", "num_classes", "scores")}
    assert found["heads"]["verdict"]["label"] == "yes"  # by the threshold


def test_pooling_takes_a_head(several: LLM, client: TestClient) -> None:
    (wanted,) = several.encode(TEXTS[0], PoolingParams(head_name="verdict"), pooling_task="classify")
    (found,) = asked(client, "/pooling", input=TEXTS[0], task="classify", head_name="verdict")["data"]
    assert found["data"] == pytest.approx(wanted.outputs.data.tolist(), abs=1e-6)


def test_scores_are_those_of_a_head_of_one_label(several: LLM, client: TestClient) -> None:
    params = PoolingParams(head_name="verdict")
    wanted = [each.outputs.score for each in several.score("good", TEXTS, pooling_params=params)]
    found = asked(client, "/score", text_1="good", text_2=TEXTS, head_name="verdict")["data"]
    assert [each["score"] for each in found] == pytest.approx(wanted, abs=1e-6)
    ranked = asked(client, "/rerank", query="good", documents=TEXTS, head_name="verdict")["results"]
    assert ranked[0]["relevance_score"] == pytest.approx(max(wanted), abs=1e-6)
    refused = client.post("/score", json={"text_1": "good", "text_2": TEXTS})
    assert refused.status_code == 400 and "this one has 3" in refused.json()["error"]["message"]


def test_a_head_that_is_not_there(client: TestClient, scorer: TestClient) -> None:
    unknown = client.post("/classify", json={"input": "good", "head_name": "verdit"})
    assert unknown.status_code == 400 and "verdict" in unknown.json()["error"]["message"]
    alone = scorer.post("/classify", json={"input": "good", "head_name": "verdict"})
    assert alone.status_code == 400 and "has no name" in alone.json()["error"]["message"]
    embedded = client.post("/pooling", json={"input": "good", "task": "embed", "head_name": "verdict"})
    assert embedded.status_code == 400 and "no head" in embedded.json()["error"]["message"]
    assert asked(scorer, "/classify", input="good", heads=True)["data"][0]["heads"] == {}


def test_the_description_and_the_schema_tell_of_them(client: TestClient, scorer: TestClient) -> None:
    heads = client.get("/model").json()["heads"]
    assert [(each["name"], each["problem_type"]) for each in heads] == [
        ("topic", None),
        ("verdict", None),
        ("length", "regression"),
    ]
    assert heads[0]["labels"] == ["film", "code", "end"]
    assert scorer.get("/model").json()["heads"] == []
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert json.dumps(list(HEADS)) in json.dumps(schemas["ClassifyInput"]["properties"]["head_name"])


@pytest.fixture
def remote(client: TestClient) -> Iterator[Client]:
    def answer(request: httpx.Request) -> httpx.Response:
        found = client.request(
            request.method, str(request.url), content=request.content, headers={"Content-Type": "application/json"}
        )
        return httpx.Response(found.status_code, content=found.content)

    with Client("http://127.0.0.1", transport=httpx.MockTransport(answer)) as remote:
        yield remote


def test_a_client_names_a_head(several: LLM, remote: Client) -> None:
    (output,) = several.classify(TEXTS[0])
    (found,) = remote.classify(TEXTS[0], head_name="verdict", heads=True)
    assert found.probs == pytest.approx(output.heads["verdict"].probs, abs=1e-6)
    assert found.heads is not None and found.heads["topic"]["label"] == output.heads["topic"].label
    (score,) = remote.score("good", TEXTS[0], head_name="verdict")
    (wanted,) = several.score("good", TEXTS[0], pooling_params=PoolingParams(head_name="verdict"))
    assert score.score == pytest.approx(wanted.outputs.score, abs=1e-6)
    assert [each.name for each in remote.describe().heads] == list(HEADS)


@pytest.mark.parametrize("name", [None, "verdict"])
def test_a_job_that_runs_there_writes_the_same_columns(
    several: LLM, remote: Client, name: str | None, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for model, out in ((several, "here"), (remote, "there")):
        classify_file(model, tmp_path / "in.jsonl", tmp_path / f"{out}.jsonl", head_name=name, logits=True)
    here, there = (
        [json.loads(line) for line in (tmp_path / f"{out}.jsonl").read_text().splitlines()] for out in ("here", "there")
    )
    assert [list(row) for row in here] == [list(row) for row in there]
    for one, other in zip(here, there, strict=True):
        for column, value in one.items():
            close = isinstance(value, float | list)
            assert other[column] == (pytest.approx(value, abs=1e-6) if close else value), column
    with pytest.raises(ConfigError, match="verdict"):
        classify_file(remote, tmp_path / "in.jsonl", tmp_path / "no.jsonl", head_name="verdit")


def test_a_job_scores_with_a_head(several: LLM, remote: Client, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"query": "good", "document": t}) + "\n" for t in TEXTS))
    wanted = several.score("good", TEXTS, pooling_params=PoolingParams(head_name="verdict"))
    for model in (several, remote):
        with pytest.raises(ConfigError, match="this one has 3"):
            score_file(model, tmp_path / "in.jsonl", tmp_path / "no.jsonl")
        score_file(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl", head_name="verdict", overwrite=True)
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [row["score"] for row in rows] == pytest.approx([each.outputs.score for each in wanted], abs=1e-6)
