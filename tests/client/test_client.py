from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import pytest

from tests.client.fake import FakeServer, classified, error
from vllm_cls import Client, ConfigError, VclsError
from vllm_cls.client import Classification, RejectedError, ServerError, UnreachableError, calls, retrying
from vllm_cls.client.retrying import Attempts, retry_after_seconds


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clients would have waited, without the waiting."""
    waited: list[float] = []

    def wait(self: threading.Event, seconds: float | None = None) -> bool:
        waited.append(seconds or 0.0)
        return self.is_set()

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(threading.Event, "wait", wait)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waited


def test_a_text_and_its_classification() -> None:
    server = FakeServer(classified([0.25, 0.75], scores={"a": 0.25, "b": 0.75}, truncated=False, new_field=1))
    answer = server.client().classify("Hello", scores=True)
    assert server.bodies == [{"input": "Hello", "scores": True}]
    assert server.requests[0].url == "http://server/classify"
    assert answer.id == "classify-1" and answer.model == "m" and answer.usage.prompt_tokens == 7
    assert list(answer) == [
        Classification(0, "L1", [0.25, 0.75], 2, scores={"a": 0.25, "b": 0.75}, top_k=None, truncated=False)
    ]
    assert len(answer) == 1 and answer[0].label == "L1"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("a", "a"),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [1, 2]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (("a", "b"), {"text": "a", "text_pair": "b"}),
        ([("a", "b"), "c"], [{"text": "a", "text_pair": "b"}, "c"]),
        ({"text": "a", "text_pair": "b"}, {"text": "a", "text_pair": "b"}),
        (["half \ud800"], ["half \ud800"]),
    ],
)
def test_every_form_of_input(given: Any, sent: Any) -> None:
    server = FakeServer(classified([1.0]))
    server.client().classify(given)
    assert server.bodies == [{"input": sent}]


def test_the_other_routes() -> None:
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    document = {"text": "Rome", "multi_modal": None}
    answers = {
        "/pooling": {"id": "p", "model": "m", "usage": usage, "data": [{"index": 0, "data": [1.0, 2.0]}]},
        "/score": {"id": "s", "model": "m", "usage": usage, "data": [{"index": 0, "object": "score", "score": 0.5}]},
        "/rerank": {"id": "r", "model": "m", "usage": usage,
                    "results": [{"index": 1, "document": document, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]},
        "/tokenize": {"count": 2, "max_model_len": 9, "tokens": [5, 6], "token_strs": None},
        "/detokenize": {"prompt": "hi"},
        "/v1/models": {"object": "list", "data": [{"id": "m", "root": "m", "parent": None, "max_model_len": 9}]},
        "/model": {"id": "m", "task": "classify", "labels": ["no", "yes"], "card": "# Card"},
        "/health": None,
        "/ready": None,
    }  # fmt: skip
    client = Client(
        "http://server/v1/", transport=httpx.MockTransport(lambda r: httpx.Response(200, json=answers[r.url.path]))
    )
    assert client.pool("a", task="classify")[0].data == [1.0, 2.0]
    assert client.embed(["a"])[0].data == [1.0, 2.0]
    assert client.score("a", ["b"])[0].score == 0.5
    ranked = client.rerank("q", ["Paris", "Rome"], top_n=2)
    assert [(each.index, each.text, each.relevance_score) for each in ranked] == [(1, "Rome", 0.9), (0, None, 0.1)]
    assert client.tokenize("hi").tokens == [5, 6]
    assert client.detokenize([5]) == "hi"
    assert [each.id for each in client.models()] == ["m"]
    described = client.describe()
    assert described.labels == ["no", "yes"] and described.card == "# Card" and described.use_activation
    assert client.health() and client.ready()


def test_a_server_that_is_not_ready_is_no_error() -> None:
    server = FakeServer(error(503, "starting"))
    assert server.client().ready() is False and server.client().health() is False
    assert len(server.requests) == 2


def test_the_words_of_the_server_are_the_error() -> None:
    server = FakeServer(error(400, "input must not be empty", param="input"))
    with pytest.raises(RejectedError, match=r"^input must not be empty$") as raised:
        server.client().classify("")
    assert (raised.value.status, raised.value.param, raised.value.type) == (400, "input", "SomeError")
    assert isinstance(raised.value, VclsError) and isinstance(raised.value, ValueError)
    assert len(server.requests) == 1
    with pytest.raises(ServerError, match="no key") as refused:
        FakeServer(error(401, "no key")).client().models()
    assert refused.value.status == 401 and not isinstance(refused.value, RejectedError)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(502, text="<html>Bad gateway</html>"),
        httpx.Response(404, json={"detail": "Not Found"}),
        httpx.Response(401, json={"error": "Unauthorized"}),
        httpx.Response(500, json=["error"]),
        httpx.Response(302, headers={"Location": "http://elsewhere"}),
    ],
)
def test_an_error_in_another_form(answer: httpx.Response) -> None:
    with pytest.raises(ServerError) as raised:
        FakeServer(answer).client().classify("a")
    assert raised.value.status == answer.status_code and str(raised.value)


@pytest.mark.parametrize("body", ["<html>", "[]", '{"data": [{"index": 0}]}', '{"data": 1}', '{"data": ["x"]}'])
def test_an_answer_that_is_none_of_ours(body: str) -> None:
    with pytest.raises(ServerError, match="is that the right server"):
        FakeServer(httpx.Response(200, text=body)).client().classify("a")


def test_an_overloaded_server_is_asked_again(pauses: list[float]) -> None:
    server = FakeServer(error(429, "full", "2"), error(503, "not ready"), classified([1.0]))
    assert server.client().classify("a")[0].probs == [1.0]
    assert len(server.requests) == 3
    assert 2.0 < pauses[0] <= 2.25 and 0.25 <= pauses[1] <= 0.5


def test_patience_ends(pauses: list[float]) -> None:
    server = FakeServer(error(429, "full"))
    with pytest.raises(ServerError, match="full") as raised:
        server.client(max_retries=2).classify("a")
    assert raised.value.status == 429 and len(server.requests) == 3
    busy = FakeServer(error(429, "full", "100"))
    with pytest.raises(ServerError, match="full") as raised:
        busy.client(timeout=5).classify("a")
    assert raised.value.retry_after == 100.0 and len(busy.requests) == 1
    assert len(pauses) == 2


def test_a_connection_that_breaks_is_made_again(pauses: list[float]) -> None:
    server = FakeServer(httpx.ConnectError("refused"), httpx.RemoteProtocolError("closed"), classified([1.0]))
    assert server.client().classify("a")[0].probs == [1.0]
    down = FakeServer(httpx.ConnectError("refused"))
    with pytest.raises(UnreachableError, match="http://server gave no answer.*refused.*is it running"):
        down.client(max_retries=1).classify("a")
    assert len(down.requests) == 2
    slow = FakeServer(httpx.ReadTimeout("timed out"))
    with pytest.raises(UnreachableError, match="took too long"):
        slow.client().classify("a")
    assert len(slow.requests) == 1
    assert len(pauses) == 3


def test_the_same_with_await(pauses: list[float]) -> None:
    async def both() -> None:
        server = FakeServer(error(429, "full", "1"), httpx.ReadError("broken"), classified([0.5, 0.5]))
        async with server.async_client() as client:
            assert (await client.classify("a"))[0].num_classes == 2
            server.answers = [error(400, "bad")]
            with pytest.raises(RejectedError, match="bad"):
                await client.classify("")
        with pytest.raises(ConfigError, match="closed"):
            await client.classify("a")

    asyncio.run(both())
    assert 1.0 < pauses[0] <= 1.25 and len(pauses) == 2


def test_close_ends_the_waiting_of_other_threads() -> None:
    server = FakeServer(error(503, "starting", "30"))
    client = server.client()
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            client.classify("a")
        except VclsError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not server.requests:
        time.sleep(0.001)
    client.close()
    thread.join(10)
    assert not thread.is_alive() and isinstance(errors[0], ConfigError)


def test_the_key_of_the_argument_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCLS_API_KEY", "from-environment")
    for options, sent in (
        ({}, "Bearer from-environment"),
        ({"api_key": "mine"}, "Bearer mine"),
        ({"api_key": ""}, None),
    ):
        server = FakeServer(classified([1.0]))
        server.client(headers={"X-Tenant": "t"}, **options).classify("a")
        assert server.requests[0].headers.get("Authorization") == sent
        assert server.requests[0].headers["X-Tenant"] == "t"


@pytest.mark.parametrize(
    ("url", "options", "match"),
    [
        ("localhost:8000", {}, "write it as http"),
        ("ftp://host", {}, "write it as http"),
        ("http://", {}, "write it as http"),
        ("http://host:99999", {}, "write it as http"),
        ("http://host\n", {}, "write it as http"),
        ("http://host", {"timeout": 0}, "timeout=0"),
        ("http://host", {"timeout": float("nan")}, "timeout=nan"),
        ("http://host", {"max_retries": -1}, "max_retries=-1"),
        ("http://host", {"api_key": "key\n"}, "line break"),
        ("http://host", {"api_key": "schlüssel"}, "no key can have"),
    ],
)
def test_wrong_options(url: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Client(url, **options)


def test_pauses_double_and_never_outlast_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying.random, "uniform", lambda low, high: high)
    attempts = Attempts(10, 1000.0)
    assert [attempts.pause() for _ in range(8)] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert attempts.pause(retry_after=30.0) == 38.0
    assert attempts.pause(retry_after=5000.0) is None
    assert Attempts(0, 10.0).pause() is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("3", 3.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("inf", None), ("nan", None),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)  # fmt: skip
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header) == seconds


def test_a_date_to_come() -> None:
    seconds = retry_after_seconds(time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100)))
    assert seconds is not None and 90 < seconds <= 100


def test_methods_have_the_arguments_and_words_of_their_calls() -> None:
    method = inspect.signature(Client("http://server").classify)
    call = inspect.signature(calls.classify)
    assert list(method.parameters.values()) == list(call.parameters.values())
    assert method.return_annotation == "Response[Classification]"
    assert Client.classify.__doc__ == calls.classify.__doc__
    routes = {
        name for name, each in vars(calls).items() if inspect.isfunction(each) and each.__module__ == calls.__name__
    }
    assert {name for name in routes if not name.startswith("_")} <= set(dir(Client))


def test_the_package_imports_no_httpx() -> None:
    code = "import sys, vllm_cls; assert 'httpx' not in sys.modules; vllm_cls.Client; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
