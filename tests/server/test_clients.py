"""The requests of vLLM's documentation, sent by the clients that people use, over a real connection."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from vllm_cls import LLM, AsyncClient, Client, classify_file, score_file
from vllm_cls.client import RejectedError, ServerError

from .conftest import LABELS
from .served import served

openai = pytest.importorskip("openai")
cohere = pytest.importorskip("cohere")
requests = pytest.importorskip("requests")

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXTS = ["Hello, my name is", "The capital of France is", "The future of AI is"]
QUERY, DOCUMENTS = (
    "What is the capital of France?",
    ["The capital of Brazil is Brasilia.", "Paris.", "Horses are animals"],
)

Post = Callable[[str, str, Any], tuple[int, Any]]


@pytest.fixture(scope="module")
def critic(llm: LLM) -> Iterator[str]:
    with served(llm) as url:
        yield url


@pytest.fixture(scope="module")
def ranking(ranker: LLM) -> Iterator[str]:
    with served(ranker) as url:
        yield url


@pytest.fixture(scope="module")
def talking(chatty: LLM) -> Iterator[str]:
    with served(chatty) as url:
        yield url


def with_requests(url: str, path: str, body: Any) -> tuple[int, Any]:
    answer = requests.post(url + path, json=body, timeout=30)
    return answer.status_code, answer.json()


def with_httpx(url: str, path: str, body: Any) -> tuple[int, Any]:
    answer = httpx.post(url + path, json=body, timeout=30)
    return answer.status_code, answer.json()


def with_openai(url: str, path: str, body: Any) -> tuple[int, Any]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        try:
            return 200, client.post(path, body=body, cast_to=object)
        except openai.APIStatusError as error:
            return error.status_code, {"error": error.body}


def with_curl(url: str, path: str, body: Any) -> tuple[int, Any]:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    command = ["curl", "-s", url + path, "-H", "Content-Type: application/json", "-d", json.dumps(body)]
    done = subprocess.run([*command, "-w", "\n%{http_code}"], capture_output=True, text=True, check=True)
    answer, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(answer)


@pytest.fixture(params=[with_requests, with_httpx, with_openai, with_curl])
def post(request: pytest.FixtureRequest) -> Post:
    return request.param


@pytest.mark.parametrize(
    ("body", "prompts"),
    [
        ({"model": "film-critic", "input": TEXTS[0]}, TEXTS[:1]),
        ({"model": "film-critic", "input": TEXTS[:2]}, TEXTS[:2]),
        ({"input": [4, 5, 6]}, [[4, 5, 6]]),
        ({"input": [[4, 5, 6], [7]]}, [[4, 5, 6], [7]]),
        ({"input": {"text": TEXTS[0], "text_pair": TEXTS[1]}}, [(TEXTS[0], TEXTS[1])]),
    ],
    ids=["string", "array", "token ids", "arrays of token ids", "pair"],
)
def test_classify(critic: str, llm: LLM, post: Post, body: Any, prompts: list[Any]) -> None:
    status, answer = post(critic, "/classify", body)
    assert status == 200
    assert set(answer) == {"id", "object", "created", "model", "data", "usage"}
    assert answer["id"].startswith("classify-") and answer["object"] == "list" and answer["model"] == "film-critic"
    expected = llm.classify(prompts)
    tokens = sum(len(each.prompt_token_ids) for each in expected)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == tokens
    for index, (each, output) in enumerate(zip(answer["data"], expected, strict=True)):
        assert set(each) == {"index", "label", "probs", "num_classes"}
        assert (each["index"], each["label"], each["num_classes"]) == (index, output.outputs.label, 3)
        assert each["probs"] == pytest.approx(output.outputs.probs, abs=1e-6)


def test_chat(talking: str, chatty: LLM, post: Post) -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "How are you?"}]
    status, answer = post(talking, "/classify", {"model": "chatty", "messages": messages})
    assert status == 200 and len(answer["data"]) == 1
    text = "<user>Hello\n<assistant>How are you?\n"
    (expected,) = chatty.classify(text, tokenization_kwargs={"add_special_tokens": False})
    assert answer["data"][0]["probs"] == pytest.approx(expected.outputs.probs, abs=1e-6)


def test_pooling(critic: str, llm: LLM, post: Post) -> None:
    probs = [each.outputs.probs for each in llm.classify(TEXTS)]
    status, answer = post(critic, "/pooling", {"model": "film-critic", "input": TEXTS})
    assert status == 200 and answer["id"].startswith("pooling-")
    assert [(each["index"], each["object"]) for each in answer["data"]] == [(i, "pooling") for i in range(3)]
    assert [each["data"] for each in answer["data"]] == [pytest.approx(each, abs=1e-6) for each in probs]
    body = {"input": TEXTS, "encoding_format": "base64", "embed_dtype": "float32", "endianness": "little"}
    _, encoded = post(critic, "/pooling", body)
    assert [struct.unpack("<3f", base64.b64decode(each["data"])) for each in encoded["data"]] == [
        pytest.approx(each, abs=1e-6) for each in probs
    ]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    ("body", "pairs"),
    [
        ({"text_1": QUERY, "text_2": DOCUMENTS[0]}, [(QUERY, DOCUMENTS[0])]),
        ({"text_1": QUERY, "text_2": DOCUMENTS}, [(QUERY, each) for each in DOCUMENTS]),
        ({"queries": [QUERY, "q"], "documents": DOCUMENTS[:2]}, [(QUERY, DOCUMENTS[0]), ("q", DOCUMENTS[1])]),
    ],
    ids=["1:1", "1:N", "N:N"],
)
def test_score(ranking: str, ranker: LLM, post: Post, path: str, body: Any, pairs: list[tuple[str, str]]) -> None:
    status, answer = post(ranking, path, {"model": "ranker", **body})
    assert status == 200 and answer["id"].startswith("score-") and answer["object"] == "list"
    first, second = zip(*pairs, strict=True)
    expected = [each.outputs.score for each in ranker.score(list(first), list(second))]
    assert [each["object"] for each in answer["data"]] == ["score"] * len(pairs)
    assert [each["score"] for each in answer["data"]] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank(ranking: str, ranker: LLM, post: Post, path: str) -> None:
    status, answer = post(ranking, path, {"model": "ranker", "query": QUERY, "documents": DOCUMENTS, "top_n": 2})
    assert status == 200 and set(answer) == {"id", "model", "usage", "results"}
    expected = ranker.rerank(QUERY, DOCUMENTS, top_n=2)
    assert [(each["index"], each["document"]["text"]) for each in answer["results"]] == [
        (each.index, each.document) for each in expected
    ]
    scores = [each["relevance_score"] for each in answer["results"]]
    assert scores == pytest.approx([each.relevance_score for each in expected], abs=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/classify", {"model": "film-critic", "input": []}, 400, "input"),
        ("/classify", {"model": "film-critic", "input": ""}, 400, "input"),
        ("/classify", {"model": "other", "input": "a"}, 404, "model"),
        ("/classify", {"input": "a", "softmax": True}, 400, "softmax"),
        ("/score", {"text_1": "a", "text_2": "b"}, 404, None),
        ("/nowhere", {}, 404, None),
    ],
)
def test_errors(critic: str, post: Post, path: str, body: Any, status: int, param: str | None) -> None:
    found, answer = post(critic, path, body)
    error = answer["error"]
    assert found == status == error["code"]
    assert set(error) == {"message", "type", "param", "code"} and error["param"] == param and error["message"]


def test_cohere(ranking: str, ranker: LLM) -> None:
    with cohere.ClientV2(api_key="none", base_url=ranking) as client:
        answer = client.rerank(model="ranker", query=QUERY, documents=DOCUMENTS, top_n=2)
        with pytest.raises(cohere.NotFoundError):
            client.rerank(model="other", query=QUERY, documents=DOCUMENTS)
    expected = ranker.rerank(QUERY, DOCUMENTS, top_n=2)
    assert [each.index for each in answer.results] == [each.index for each in expected]
    assert [each.relevance_score for each in answer.results] == pytest.approx(
        [each.relevance_score for each in expected], abs=1e-6
    )


def test_openai_lists_the_models(critic: str) -> None:
    with openai.OpenAI(base_url=f"{critic}/v1", api_key="none") as client:
        assert [each.id for each in client.models.list()] == ["film-critic"]


def test_our_own_client(critic: str, ranking: str, talking: str, llm: LLM, ranker: LLM) -> None:
    with Client(critic) as client:
        answer = client.classify(TEXTS, top_k=1, scores=True, logits=True, truncated=True)
        for each, output in zip(answer, llm.classify(TEXTS), strict=True):
            assert each.scores == pytest.approx(output.outputs.scores, abs=1e-6)
            assert each.logits == pytest.approx(output.outputs.logits, abs=1e-5)
            assert each.top_k is not None and each.top_k[0]["label"] == each.label == output.outputs.label
            assert each.truncated is False
        assert client.classify([("a", "b"), "c"])[1].num_classes == 3
        assert len(client.embed("a")[0].data) == llm.model.config.hidden_size
        assert client.pool("a")[0].data == pytest.approx(client.classify("a")[0].probs)
        assert client.detokenize(client.tokenize("good film", add_special_tokens=False).tokens) == "good film"
        assert client.describe().labels == list(LABELS.values())
        assert [each.id for each in client.models()] == ["film-critic"]
        assert client.health() and client.ready()
        with pytest.raises(RejectedError) as rejected:
            client.classify("")
        assert rejected.value.param == "input"
    with Client(ranking) as client:
        expected = [each.outputs.score for each in ranker.score(QUERY, DOCUMENTS)]
        assert [each.score for each in client.score(QUERY, DOCUMENTS)] == pytest.approx(expected, abs=1e-6)
        assert client.rerank(QUERY, DOCUMENTS, top_n=1)[0].text in DOCUMENTS
    with Client(talking) as client:
        assert len(client.chat([{"role": "user", "content": "Hello"}])) == 1


def test_our_own_client_with_await(critic: str, llm: LLM) -> None:
    async def ask() -> list[Any]:
        async with AsyncClient(critic) as client:
            return await asyncio.gather(*(client.classify(text) for text in TEXTS))

    for answer, output in zip(asyncio.run(ask()), llm.classify(TEXTS), strict=True):
        assert answer[0].probs == pytest.approx(output.outputs.probs, abs=1e-6)


def test_a_key(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(llm, api_keys=("secret",)) as url:
        with Client(url, api_key="wrong") as client, pytest.raises(ServerError) as refused:
            client.classify("a")
        assert refused.value.status == 401
        monkeypatch.setenv("VCLS_API_KEY", "secret")
        with Client(url) as client:
            assert client.classify("a")[0].label in LABELS.values()


def numbers(path: Path) -> list[Any]:
    """Rows with their numbers rounded: a batch may move the last bits."""
    return json.loads(path.read_text(), parse_float=lambda text: round(float(text), 4))


def test_a_job_over_a_server_gives_the_file_of_a_job_here(
    critic: str, ranking: str, llm: LLM, ranker: LLM, tmp_path: Path
) -> None:
    rows = [
        {"text": f"good film {i} " + "bad " * (i % 7 * 60), "query": f"q {i}", "document": f"film {i}"}
        for i in range(100)
    ]
    (tmp_path / "in.json").write_text(json.dumps([*rows, {"text": ""}]))
    (tmp_path / "pairs.json").write_text(json.dumps([*rows, {"query": "x"}]))
    with Client(critic) as client:
        there = classify_file(client, tmp_path / "in.json", tmp_path / "there.json", scores=True)
    here = classify_file(llm, tmp_path / "in.json", tmp_path / "here.json", scores=True)
    assert numbers(tmp_path / "there.json") == numbers(tmp_path / "here.json")
    assert (there.rows, there.failed, there.truncated) == (here.rows, here.failed, here.truncated)
    assert there.failed == 1 and there.truncated > 0
    with Client(ranking) as client:
        score_file(client, tmp_path / "pairs.json", tmp_path / "there.json", max_tokens_per_doc=2, overwrite=True)
    score_file(ranker, tmp_path / "pairs.json", tmp_path / "here.json", max_tokens_per_doc=2, overwrite=True)
    assert numbers(tmp_path / "there.json") == numbers(tmp_path / "here.json")


@pytest.mark.parametrize(
    ("script", "where", "shown"),
    [
        ("online_classification.py", "critic", "'Hello, my name is': "),
        ("openai_pooling_client.py", "critic", "an error: {'message': "),
        ("cohere_rerank_client.py", "ranking", "  The capital of "),
    ],
)
def test_examples(script: str, where: str, shown: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(where)
    command = [sys.executable, EXAMPLES / script, "--url", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
