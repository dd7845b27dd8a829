"""/pooling: tasks, and numbers in every encoding."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as models
from starlette.testclient import TestClient

from tests.models import tiny
from vllm_cls import LLM, PoolingParams

from ..conftest import client_of

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def numbers(raw: bytes, dtype: str, endianness: str) -> torch.Tensor:
    size = DTYPES[dtype].itemsize
    rows = torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(-1, size)
    if endianness == "big":  # tests run on little-endian machines
        rows = rows.flip(1)
    return rows.contiguous().view(DTYPES[dtype]).flatten().float()


@pytest.mark.parametrize("task", [None, "classify", "token_classify", "embed"])
def test_tasks(client: TestClient, llm: LLM, task: str | None) -> None:
    answer = client.post("/pooling", json={"input": ["good", "a boring end"], "task": task}).json()
    expected = llm.encode(["good", "a boring end"], pooling_task=task or "classify")
    assert (answer["object"], answer["model"]) == ("list", "film-critic") and answer["id"].startswith("pooling-")
    for index, (row, output) in enumerate(zip(answer["data"], expected, strict=True)):
        assert (row["index"], row["object"]) == (index, "pooling")
        torch.testing.assert_close(torch.tensor(row["data"]), output.outputs.data, atol=1e-6, rtol=0)


def test_use_activation(client: TestClient, llm: LLM) -> None:
    (expected,) = llm.encode("good", PoolingParams(use_activation=False), pooling_task="classify")
    (row,) = client.post("/pooling", json={"input": "good", "use_activation": False}).json()["data"]
    torch.testing.assert_close(torch.tensor(row["data"]), expected.outputs.data, atol=1e-6, rtol=0)


@pytest.mark.parametrize("endianness", ["native", "little", "big"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_encodings(client: TestClient, llm: LLM, dtype: str, endianness: str) -> None:
    texts = ["good", "a boring end"]
    expected = [
        each.outputs.data.to(DTYPES[dtype]).float() for each in llm.encode(texts, pooling_task="token_classify")
    ]
    body = {"input": texts, "task": "token_classify", "embed_dtype": dtype, "endianness": endianness}
    tolerance: dict[str, Any] = {"atol": 1e-6, "rtol": torch.finfo(DTYPES[dtype]).eps}

    rows = client.post("/pooling", json={**body, "encoding_format": "base64"}).json()["data"]
    for row, tensor in zip(rows, expected, strict=True):
        found = numbers(base64.b64decode(row["data"]), dtype, endianness)
        torch.testing.assert_close(found, tensor.flatten(), **tolerance)

    answer = client.post("/pooling", json={**body, "encoding_format": "bytes"})
    assert answer.headers["Content-Type"] == "application/octet-stream"
    metadata = json.loads(answer.headers["metadata"])
    assert set(metadata) == {"id", "created", "model", "data", "usage"}
    assert set(metadata["usage"]) == {"prompt_tokens", "total_tokens"}
    for index, (row, tensor) in enumerate(zip(metadata["data"], expected, strict=True)):
        assert (row["index"], row["embed_dtype"], row["endianness"]) == (index, dtype, endianness)
        found = numbers(answer.content[row["start"] : row["end"]], dtype, endianness).reshape(row["shape"])
        torch.testing.assert_close(found, tensor, **tolerance)

    only = client.post("/pooling", json={**body, "encoding_format": "bytes_only"})
    assert only.content == answer.content and "metadata" not in only.headers


def test_a_number_that_does_not_fit(llm: LLM) -> None:
    from vllm_cls.server.errors import RequestError
    from vllm_cls.server.protocol.encoding import to_bytes

    with pytest.raises(RequestError, match="does not fit float16"):
        to_bytes(torch.tensor([1e6]), "float16", "native")


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"task": "score"}, "task", "was removed"),
        ({"task": "encode"}, "task", "was removed"),
        (
            {"task": "plugin"},
            "task",
            "Unsupported task: 'plugin' Supported tasks: ['classify', 'token_classify', 'embed']",
        ),
        ({"dimensions": 3}, "dimensions", "dimensions is currently not supported"),
        ({"encoding_format": "hex"}, "encoding_format", "'float', 'base64', 'bytes' or 'bytes_only'"),
        ({"embed_dtype": "int8"}, "embed_dtype", "'float32'"),
        ({"endianness": "middle"}, "endianness", "'native'"),
        ({"data": "x", "input": None}, "data", "no field 'data'"),
    ],
)
def test_bad_values(client: TestClient, body: dict[str, Any], param: str, message: str) -> None:
    answer = client.post("/pooling", json={"input": "a", **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param and message in answer.json()["error"]["message"]


def test_io_processors_are_not_there(client: TestClient) -> None:
    answer = client.post("/pooling", json={"data": "x", "task": "plugin"})
    assert answer.status_code == 400 and "IO processors" in answer.json()["error"]["message"]


def test_a_token_classifier_does_tokens_alone(tagger: LLM) -> None:
    with client_of(tagger) as client:
        (row,) = client.post("/pooling", json={"input": "The film was good"}).json()["data"]
        (expected,) = tagger.encode("The film was good", pooling_task="token_classify")
        torch.testing.assert_close(torch.tensor(row["data"]), expected.outputs.data, atol=1e-6, rtol=0)
        assert client.post("/pooling", json={"input": "a", "task": "classify"}).status_code == 400
        missing = client.post("/classify", json={"input": "a"})
        assert missing.status_code == 404 and "/pooling" in missing.json()["error"]["message"]


def test_a_conversation(talker: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "good"}]}
    pooled, classified = talker.post("/pooling", json=body).json(), talker.post("/classify", json=body).json()
    assert pooled["data"][0]["data"] == pytest.approx(classified["data"][0]["probs"], abs=1e-6)


def test_an_embedder(tmp_path: Path) -> None:
    """A Sentence Transformers folder gives its embeddings, by every route that has any to give."""
    base = tiny.base_model("bert", tmp_path / "base")
    parts = [
        models.Transformer(str(base), max_seq_length=24),
        models.Pooling(32, pooling_mode="mean"),
        models.Normalize(),
    ]
    reference = SentenceTransformer(modules=parts, device="cpu")
    reference.save(str(tmp_path / "out"))
    texts = ["The film was good", "a boring end"]
    with LLM(str(tmp_path / "out"), device="cpu") as llm, client_of(llm) as client:
        for body in ({"input": texts}, {"input": texts, "task": "embed"}):
            answer = client.post("/pooling", json=body)
            assert answer.status_code == 200, answer.text
            got = np.array([each["data"] for each in answer.json()["data"]])
            assert np.abs(got - reference.encode(texts)).max() < 1e-5
        for path in ("/classify", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"):
            answer = client.post(path, json={"input": texts, "query": texts[0], "documents": texts})
            assert answer.status_code == 404
            assert "this model does embed alone, and gives no label and no score" in answer.json()["error"]["message"]
        for body in ({"input": texts}, {"text_1": "a", "text_2": "b"}, {"query": "a", "documents": ["b"]}):
            answer = client.post("/invocations", json=body)
            assert answer.status_code == 400 and "is an embedder" in answer.json()["error"]["message"]
            assert str(tmp_path) not in answer.text
        described = client.get("/model").json()
        assert (described["task"], described["labels"], described["gives_probabilities"]) == ("embed", [], False)
        assert client.get("/").status_code == 200


def test_where_tokens_stand(tagger: LLM, client: TestClient) -> None:
    """As transformers says; of a plain text alone."""
    tokenizer: Any = tagger.get_tokenizer()
    texts = ["The film\twas unbelievable 😀, so", "good " * 100]
    with client_of(tagger) as tags:

        def offsets(given: Any, **body: Any) -> list[Any]:
            body = {"input": given, "offsets": True, **body}
            answer = tags.post("/pooling", json=body)
            assert answer.status_code == 200, answer.text
            assert all("offsets" in each for each in answer.json()["data"])
            return [each["offsets"] for each in answer.json()["data"]]

        for side in ("left", "right"):
            tokenizer.truncation_side = side
            wanted = tokenizer(texts, truncation=True, max_length=9, return_offsets_mapping=True,
                               return_special_tokens_mask=True)  # fmt: skip
            expected = [
                [None if mark else list(place) for place, mark in zip(places, marks, strict=True)]
                for places, marks in zip(wanted["offset_mapping"], wanted["special_tokens_mask"], strict=True)
            ]
            tokenizer.truncation_side = "right"
            assert offsets(texts, truncate_prompt_tokens=9, truncation_side=side) == expected
            assert offsets(texts, truncate_prompt_tokens=9, truncation_side=side, encoding_format="base64") == expected
        assert offsets([[5, 6]]) == offsets({"text": "a", "text_pair": "b"}) == [None]
        assert "offsets" not in tags.post("/pooling", json={"input": "good"}).json()["data"][0]
        refused = tags.post("/pooling", json={"input": "good", "offsets": True, "encoding_format": "bytes"})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "offsets"
    (embedded,) = client.post("/pooling", json={"input": "good", "offsets": True, "task": "embed"}).json()["data"]
    assert embedded["offsets"] is None
