"""/v1/embeddings: numbers as Sentence Transformers gives them, through OpenAI's client too."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from starlette.testclient import TestClient

from tests.models import tiny
from vllm_cls import LLM, ConfigError, PoolingParams, PromptError

from ..conftest import client_of
from ..served import served

TEXTS = ["what is good", "a boring end"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    base = tiny.base_model("bert", tmp_path_factory.mktemp("base"))
    parts = [modules.Transformer(str(base), max_seq_length=24), modules.Pooling(32, "mean"), modules.Normalize()]
    return SentenceTransformer(modules=parts, device="cpu")


@pytest.fixture(scope="module")
def embedder(reference: SentenceTransformer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("models") / "embedder"
    reference.save(str(folder))
    with LLM(str(folder), device="cpu") as llm:
        yield llm


@pytest.fixture(scope="module")
def embeds(embedder: LLM) -> Iterator[TestClient]:
    with client_of(embedder) as client:
        yield client


def expected(reference: SentenceTransformer, dimensions: int | None = None) -> np.ndarray:
    return reference.encode(TEXTS, truncate_dim=dimensions, normalize_embeddings=True)


def test_openai(reference: SentenceTransformer, embedder: LLM) -> None:
    with served(embedder) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        found = client.embeddings.create(model="embedder", input=TEXTS)  # in base64, as the client asks for it
        assert np.abs(np.array([each.embedding for each in found.data]) - expected(reference)).max() < 1e-5
        assert [(each.index, each.object) for each in found.data] == [(0, "embedding"), (1, "embedding")]
        assert found.usage.prompt_tokens == sum(len(each.prompt_token_ids) for each in embedder.embed(TEXTS))
        short = client.embeddings.create(model="embedder", input=TEXTS, dimensions=5, encoding_format="float")
        assert np.abs(np.array([each.embedding for each in short.data]) - expected(reference, 5)).max() < 1e-5


def test_numbers_and_bytes(embeds: TestClient, reference: SentenceTransformer) -> None:
    numbers = embeds.post("/v1/embeddings", json={"input": TEXTS}).json()
    assert np.abs(np.array([each["embedding"] for each in numbers["data"]]) - expected(reference)).max() < 1e-5
    coded = embeds.post("/v1/embeddings", json={"input": TEXTS, "encoding_format": "base64"}).json()
    read = [np.frombuffer(base64.b64decode(each["embedding"]), dtype="<f4") for each in coded["data"]]
    assert np.abs(np.array(read) - expected(reference)).max() < 1e-5
    raw = embeds.post("/v1/embeddings", json={"input": TEXTS, "encoding_format": "bytes_only"}).content
    assert np.abs(np.frombuffer(raw, dtype="<f4").reshape(2, -1) - expected(reference)).max() < 1e-5


def test_dimensions(embeds: TestClient, embedder: LLM, reference: SentenceTransformer) -> None:
    found = embedder.embed(TEXTS, pooling_params=PoolingParams(dimensions=5))
    assert np.abs(np.array([each.outputs.embedding for each in found]) - expected(reference, 5)).max() < 1e-5
    (raw,) = embedder.embed(TEXTS[0], pooling_params=PoolingParams(dimensions=5, use_activation=False))
    (whole,) = embedder.embed(TEXTS[0], pooling_params=PoolingParams(use_activation=False))
    assert raw.outputs.embedding == whole.outputs.embedding[:5]
    with pytest.raises(PromptError, match="embeddings of this model have 32"):
        embedder.embed(TEXTS, pooling_params=PoolingParams(dimensions=33))
    for wrong in (0, True, 1.5):
        with pytest.raises(ConfigError, match="whole number from 1 on"):
            PoolingParams(dimensions=wrong)  # type: ignore[arg-type]
    for wrong in (33, 0):
        answer = embeds.post("/v1/embeddings", json={"input": TEXTS, "dimensions": wrong})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "dimensions"


def test_dimensions_of_what_is_no_embedding(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="dimensions=2 is for embeddings, not for classify"):
        llm.classify("good", pooling_params=PoolingParams(dimensions=2))


def test_any_model_embeds(client: TestClient, llm: LLM) -> None:
    answer = client.post("/v1/embeddings", json={"input": "good"})
    (found,) = llm.embed("good")
    assert answer.json()["data"][0]["embedding"] == pytest.approx(found.outputs.embedding, abs=1e-6)
