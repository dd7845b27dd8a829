"""/score and /rerank: every pair of names, every form of a document, numbers as `LLM.score` gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from tests.models import tiny
from vllm_cls import LLM

from ..conftest import client_of

QUERY, DOCUMENTS = "what is good", ["a boring end", "the film was good", "bad"]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
def test_score(scorer: TestClient, ranker: LLM, path: str, names: tuple[str, str]) -> None:
    pairs: list[tuple[Any, Any]] = [
        (QUERY, DOCUMENTS[0]), (QUERY, DOCUMENTS), ([QUERY], DOCUMENTS), (DOCUMENTS, DOCUMENTS[::-1]),
    ]  # fmt: skip
    for sides in pairs:
        answer = scorer.post(path, json=dict(zip(names, sides, strict=True))).json()
        expected = ranker.score(*sides)
        assert [each["score"] for each in answer["data"]] == pytest.approx(
            [each.outputs.score for each in expected], abs=1e-6
        )
        assert [(each["index"], each["object"]) for each in answer["data"]] == [
            (index, "score") for index in range(len(expected))
        ]
        assert answer["id"].startswith("score-") and answer["object"] == "list"
        assert answer["usage"]["prompt_tokens"] == sum(len(each.prompt_token_ids) for each in expected)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank(scorer: TestClient, ranker: LLM, path: str) -> None:
    answer = scorer.post(path, json={"query": QUERY, "documents": DOCUMENTS, "request_id": "r"}).json()
    expected = ranker.rerank(QUERY, DOCUMENTS)
    assert [each["index"] for each in answer["results"]] == [each.index for each in expected]
    for row, document in zip(answer["results"], expected, strict=True):
        assert row["relevance_score"] == pytest.approx(document.relevance_score, abs=1e-6)
        assert row["document"] == {"text": document.document, "multi_modal": None}
    assert set(answer) == {"id", "model", "usage", "results"} and answer["id"] == "score-r"
    assert set(answer["usage"]) == {"prompt_tokens", "total_tokens"}


def test_documents_in_every_form(scorer: TestClient) -> None:
    written = [
        DOCUMENTS[0], {"text": DOCUMENTS[1]}, {"content": [{"type": "text", "text": DOCUMENTS[2]}]},
    ]  # fmt: skip
    plain = scorer.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS}).json()["results"]
    assert scorer.post("/rerank", json={"query": {"text": QUERY}, "documents": written}).json()["results"] == plain
    (alone,) = scorer.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS[0]}).json()["results"]
    assert alone["document"]["text"] == DOCUMENTS[0]


def test_fewer_results_without_documents(scorer: TestClient) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS}
    everything = scorer.post("/rerank", json=body).json()["results"]
    assert scorer.post("/rerank", json={**body, "top_n": 2}).json()["results"] == everything[:2]
    assert scorer.post("/rerank", json={**body, "top_n": 9}).json()["results"] == everything
    bare = scorer.post("/rerank", json={**body, "return_documents": False}).json()["results"]
    assert bare == [{name: row[name] for name in ("index", "relevance_score")} for row in everything]


def test_limits_of_the_texts(scorer: TestClient, ranker: LLM) -> None:
    limits = {"max_tokens_per_query": 1, "max_tokens_per_doc": 2}
    answer = scorer.post("/score", json={"text_1": QUERY, "text_2": DOCUMENTS, **limits}).json()
    expected = ranker.score(QUERY, DOCUMENTS, **limits)
    assert [each["score"] for each in answer["data"]] == pytest.approx(
        [each.outputs.score for each in expected], abs=1e-6
    )


def test_scores_without_activation_are_logits(scorer: TestClient) -> None:
    body = {"text_1": QUERY, "text_2": DOCUMENTS}
    scores, logits = (
        torch.tensor([row["score"] for row in scorer.post("/score", json=each).json()["data"]])
        for each in (body, {**body, "use_activation": False})
    )
    torch.testing.assert_close(scores, logits.sigmoid(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("/score", {}, None, "Give two sides of texts"),
        ("/score", {"text_1": "a"}, "text_2", "Field required"),
        ("/score", {"queries": "a"}, "documents", "Field required"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, None, "1:1, 1:N or N:N"),
        ("/score", {"text_1": ["a", "b"], "text_2": "a"}, None, "1:1, 1:N or N:N"),
        ("/score", {"text_1": [], "text_2": "a"}, "text_1", "at least one prompt"),
        ("/score", {"text_1": 3, "text_2": "a"}, "text_1", "takes texts"),
        ("/score", {"text_1": "a", "text_2": ["a"] * 65}, "text_2", "65 are more than the 64"),
        ("/score", {"text_1": "a", "text_2": "a", "chat_template": "x"}, "chat_template", "no field"),
        ("/score", {"text_1": "a", "text_2": "a", "instruction": "x"}, "instruction", "no place for one"),
        (
            "/score",
            {"text_1": "a", "text_2": "a", "chat_template_kwargs": {"instruction": "x"}},
            "chat_template_kwargs",
            "no place for one",
        ),
        ("/score", {"text_1": "a", "text_2": "a", "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs", "x"),
        ("/rerank", {"query": "a", "documents": []}, "documents", "at least one prompt"),
        ("/rerank", {"query": ["a"], "documents": ["a"]}, "query", "takes texts"),
        ("/rerank", {"query": "a", "documents": [{"title": "a"}]}, "documents", "takes texts"),
        ("/rerank", {"query": "a", "documents": [{"content": [{"type": "image_url"}]}]}, "documents", "'image_url'"),
        ("/rerank", {"query": "a", "documents": ["a"], "top_n": -1}, "top_n", "greater than or equal to 0"),
        (
            "/rerank",
            {"query": "a", "documents": ["a"], "max_tokens_per_doc": 256},
            "max_tokens_per_doc",
            "less than 256",
        ),
        ("/rerank", {"query": "a", "documents": ["good " * 300]}, "input_tokens", "maximum context length is 256"),
    ],
)
def test_bad_values(scorer: TestClient, path: str, body: dict[str, Any], param: str | None, message: str) -> None:
    answer = scorer.post(path, json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and message in error["message"], error


def test_a_query_is_counted_with_each_document(ranker: LLM) -> None:
    with client_of(ranker, max_request_tokens=150) as client:
        body = {"query": "a" * 100, "documents": ["b"] * 20, "truncate_prompt_tokens": -1}
        assert "the 150 " in client.post("/rerank", json=body).json()["error"]["message"]
        assert client.post("/rerank", json={**body, "documents": ["b"]}).status_code == 200


def test_a_model_of_several_labels_has_no_such_routes(client: TestClient) -> None:
    for path in ("/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"):
        answer = client.post(path, json={"query": "a", "documents": ["b"]})
        assert answer.status_code == 404 and "one label" in answer.json()["error"]["message"]
    assert not [path for path in client.get("/openapi.json").json()["paths"] if "rerank" in path or "score" in path]


def test_refusals_of_the_model_do_not_name_its_folder(tmp_path: Path) -> None:
    folder = tiny.classifier("llama", tmp_path / "causal", num_labels=1)
    with LLM(str(folder), device="cpu") as llm, client_of(llm) as client:
        answer = client.post("/score", json={"text_1": "a", "text_2": "b"})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "causal is a causal reranker" in message and str(tmp_path) not in message
