"""/invocations: a request of any route, told by its fields."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", {"input": ["good", "bad"]}),
        ("/pooling", {"input": "good", "task": "embed"}),
        ("/pooling", {"input": "good", "encoding_format": "base64"}),
        ("/pooling", {"input": "good", "encoding_format": "bytes_only"}),
        ("/score", {"text_1": "good", "text_2": ["bad", "good"]}),
        ("/score", {"queries": "good", "items": "bad"}),
        ("/rerank", {"query": "good", "documents": ["bad", "good"]}),
    ],
)
def test_it_answers_as_the_route_does(scorer: TestClient, path: str, body: dict[str, Any]) -> None:
    body = {**body, "request_id": "same"}
    answer, expected = scorer.post("/invocations", json=body), scorer.post(path, json=body)
    assert answer.status_code == expected.status_code == 200
    if answer.headers["Content-Type"] == "application/json":
        assert {**answer.json(), "created": 0} == {**expected.json(), "created": 0}
    else:
        assert answer.content == expected.content


def test_a_conversation(talker: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "good"}]}
    answer, expected = (talker.post(path, json=body).json() for path in ("/invocations", "/classify"))
    assert answer["data"] == expected["data"]


@pytest.mark.parametrize("body", [{}, {"prompt": "good"}, {"query": "a"}, {"input": "a", "task": "plugin"}])
def test_no_form(scorer: TestClient, body: dict[str, Any]) -> None:
    answer = scorer.post("/invocations", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_scores_of_a_model_without_any(client: TestClient) -> None:
    answer = client.post("/invocations", json={"query": "a", "documents": ["b"]})
    assert answer.status_code == 400 and "num_labels 1" in answer.json()["error"]["message"]
