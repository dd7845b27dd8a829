"""/predict, /info and /rerank with `texts`, as clients of Text Embeddings Inference ask for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from vllm_cls import LLM, PoolingParams

TEXTS = ["a boring end", "the film was good", "bad"]


def sorted_labels(llm: LLM, prompt: Any, **params: Any) -> list[dict[str, Any]]:
    (output,) = llm.classify([prompt], pooling_params=PoolingParams(**params), use_tqdm=False)
    probs = torch.tensor(output.outputs.probs)
    order = probs.argsort(descending=True).tolist()
    return [{"label": llm.id2label[each], "score": pytest.approx(float(probs[each]), abs=1e-6)} for each in order]


def test_predict(client: TestClient, llm: LLM) -> None:
    def ask(inputs: Any, **fields: Any) -> Any:
        answer = client.post("/predict", json={"inputs": inputs, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert ask("good film") == sorted_labels(llm, "good film")
    assert ask(["good film"]) == sorted_labels(llm, "good film")
    assert ask(["good", "film"]) == sorted_labels(llm, ("good", "film"))  # a pair, not two texts
    assert ask([["good"], ["good", "film"]]) == [sorted_labels(llm, "good"), sorted_labels(llm, ("good", "film"))]
    assert ask("good film", raw_scores=True) == sorted_labels(llm, "good film", use_activation=False)


@pytest.mark.parametrize(
    ("inputs", "named"),
    [([], "at least one prompt"), ([[]], "a pair of texts"), (["a", "b", "c"], "a pair of texts"), (3, "a pair of texts"),
     ([["a"], "b", 3], "a pair of texts"), ("", "empty")],
)  # fmt: skip
def test_inputs_that_are_none(client: TestClient, inputs: Any, named: str) -> None:
    answer = client.post("/predict", json={"inputs": inputs})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "inputs" and named in answer.json()["error"]["message"]


def test_nothing_is_cut_unless_asked(client: TestClient, llm: LLM) -> None:
    long = "bad " + "good " * 400
    refused = client.post("/predict", json={"inputs": long})
    assert refused.status_code == 400 and "maximum context length" in refused.json()["error"]["message"]
    assert client.post("/predict", json={"inputs": long, "truncate": None}).status_code == 400
    assert client.post("/predict", json={"inputs": "good", "truncate": None}).status_code == 200
    for side in ("Left", "Right"):
        answer = client.post("/predict", json={"inputs": long, "truncate": True, "truncation_direction": side})
        (expected,) = llm.classify(
            long, tokenization_kwargs={"truncate_prompt_tokens": -1, "truncation_side": side.lower()}, use_tqdm=False
        )
        assert answer.json()[0]["score"] == pytest.approx(max(expected.outputs.probs), abs=1e-6)


def test_rerank_texts(scorer: TestClient, ranker: LLM) -> None:
    expected = ranker.rerank("what is good", TEXTS)
    answer = scorer.post("/rerank", json={"query": "what is good", "texts": TEXTS}).json()
    assert answer == [
        {"index": each.index, "score": pytest.approx(each.relevance_score, abs=1e-6)} for each in expected
    ]
    shown = scorer.post("/rerank", json={"query": "what is good", "texts": TEXTS, "return_text": True}).json()
    assert [each["text"] for each in shown] == [TEXTS[each.index] for each in expected]
    raw = scorer.post("/rerank", json={"query": "what is good", "texts": TEXTS, "raw_scores": True}).json()
    assert [torch.sigmoid(torch.tensor(each["score"])).item() for each in raw] == pytest.approx(
        [each.relevance_score for each in expected], abs=1e-6
    )
    assert scorer.post("/rerank", json={"query": "a", "texts": []}).json()["error"]["param"] == "texts"


def test_both_through_invocations(client: TestClient, scorer: TestClient) -> None:
    body: dict[str, Any] = {"inputs": [["good"]]}
    assert client.post("/invocations", json=body).json() == client.post("/predict", json=body).json()
    body = {"query": "what is good", "texts": TEXTS}
    assert scorer.post("/invocations", json=body).json() == scorer.post("/rerank", json=body).json()


def test_info(client: TestClient, scorer: TestClient, llm: LLM) -> None:
    info = client.get("/info").json()
    assert info["model_id"] == "film-critic" and info["model_dtype"] == "float32"
    assert info["max_input_length"] == llm.max_model_len and info["max_client_batch_size"] == 64
    assert info["model_type"] == {
        "classifier": {
            "id2label": {str(index): name for index, name in llm.id2label.items()},
            "label2id": {name: index for index, name in llm.id2label.items()},
        }
    }
    assert scorer.get("/info").json()["model_type"].keys() == {"reranker"}


def test_one_model(client: TestClient) -> None:
    (listed,) = client.get("/v1/models").json()["data"]
    assert client.get("/v1/models/film-critic").json() == listed
    missing = client.get("/v1/models/else/where")
    assert missing.status_code == 404 and "does not exist" in missing.json()["error"]["message"]
    assert client.get("/v1/models/").status_code == 404
