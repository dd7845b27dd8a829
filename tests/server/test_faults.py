"""What fails by our fault, wherever it does: 500 with an id, under which the log says where; nothing else is told."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, Response
from fastapi.routing import APIRoute
from starlette.routing import Route
from starlette.testclient import TestClient

import vllm_cls.server.app
from vllm_cls import LLM, EngineDeadError, PromptError, hookimpl
from vllm_cls.async_llm import AsyncLLM
from vllm_cls.calls.tasks import TaskCall
from vllm_cls.errors import ModelError
from vllm_cls.inputs.tokenization import PromptProcessor
from vllm_cls.registry import PluginInfo, Registry
from vllm_cls.runtime import engine
from vllm_cls.server import ServerSettings, create_app, errors
from vllm_cls.server.middleware import auth, instrumentation, limits
from vllm_cls.server.observability import logs
from vllm_cls.server.observability.metrics import ServerMetrics
from vllm_cls.server.requests import json_bodies

SECRETS = "the text of a prompt at /srv/models/secret.py by <object at 0x7f3e701a5d10>"


class Panic(BaseException):
    """As a library in Rust raises it."""


FAULTS: list[Callable[[], BaseException]] = [
    lambda: RuntimeError(SECRETS), lambda: KeyError(SECRETS), lambda: Panic(SECRETS), lambda: ModelError(SECRETS),
]  # fmt: skip


def failing(error: Callable[[], BaseException] = FAULTS[0]) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error()

    return fail


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.LineFormatter("text"))
    logs.logger.addHandler(handler)
    yield stream
    logs.logger.removeHandler(handler)


def client_of(app: Any) -> TestClient:
    return TestClient(app, raise_server_exceptions=False, headers={"Authorization": "Bearer key"})


@pytest.fixture
def client(llm: LLM) -> Iterator[TestClient]:
    with client_of(create_app(llm, ServerSettings(api_keys=("key",), allowed_hosts=("testserver",)))) as client:
        yield client


def check(answer: Any, log: io.StringIO, *format_errors: str, identity: str | None = None) -> None:
    """It is such an answer, and the log has its id with what failed."""
    assert answer.status_code == 500, answer.text
    error = answer.json()["error"]
    given = answer.headers["X-Request-Id"]
    assert error["type"] == "InternalServerError" and given in error["message"] and identity in (None, given)
    for secret in ("prompt at", "secret", "0x7f", ".py", "Traceback", "Error:"):
        assert secret not in error["message"]
    (line,) = (each for each in log.getvalue().split("\n20") if "a request failed" in each)
    assert f"request_id={given}" in line and "text of a prompt" not in log.getvalue()
    for each in ("in fail", *format_errors):
        assert each in line


@pytest.mark.parametrize("error", [FAULTS[0], FAULTS[2]])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"), ("HEAD", "/"), ("POST", "/classify"), ("POST", "/pooling"), ("POST", "/score"), ("POST", "/v1/score"),
        ("POST", "/rerank"), ("POST", "/v1/rerank"), ("POST", "/v2/rerank"), ("POST", "/tokenize"), ("POST", "/detokenize"),
        ("POST", "/invocations"), ("GET", "/v1/models"), ("GET", "/version"), ("GET", "/load"), ("GET", "/model"),
        ("GET", "/health"), ("HEAD", "/health"), ("GET", "/ping"), ("POST", "/ping"), ("GET", "/ready"), ("GET", "/metrics"),
        ("GET", "/docs"), ("GET", "/openapi.json"),
    ],
)  # fmt: skip
def test_of_every_route(
    ranker: LLM, log: io.StringIO, monkeypatch: pytest.MonkeyPatch, error: Any, method: str, path: str
) -> None:
    app = create_app(ranker)
    for kind in (Route, APIRoute):
        monkeypatch.setattr(kind, "handle", failing(error))
    answer = client_of(app).request(method, path, headers={"X-Request-Id": "of-this"})
    assert answer.status_code == 500 and answer.headers["X-Request-Id"] == "of-this"
    if method != "HEAD":
        check(answer, log, type(error()).__name__, identity="of-this")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (PromptProcessor, "tokenize"),  # in a thread for tokenizing
        (engine, "ForwardItem"),  # in the engine's thread
        (TaskCall, "outputs"),  # in the thread that makes outputs
        (ServerMetrics, "predicted"),
        (json_bodies, "to_json"),
        (json_bodies, "from_json"),
        (AsyncLLM, "classify"),
    ],
)
@pytest.mark.parametrize("error", [FAULTS[0], FAULTS[3]])
def test_wherever_the_model_runs(
    client: TestClient, log: io.StringIO, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: Any
) -> None:
    if name == "from_json":
        error = FAULTS[1]  # a ValueError there is one of the client's
    monkeypatch.setattr(owner, name, failing(error))
    answer = client.post("/classify", json={"input": "good", "request_id": "of-its-body"})
    check(answer, log, type(error()).__name__)
    if name != "from_json":
        assert answer.headers["X-Request-Id"] == "of-its-body"
    monkeypatch.undo()
    assert client.post("/classify", json={"input": "good"}).status_code == 200


@pytest.mark.parametrize("owner", [PromptProcessor, TaskCall])
def test_a_panic_of_a_tokenizer(
    client: TestClient, log: io.StringIO, monkeypatch: pytest.MonkeyPatch, owner: Any
) -> None:
    monkeypatch.setattr(owner, "tokenize" if owner is PromptProcessor else "outputs", failing(FAULTS[2]))
    check(client.post("/classify", json={"input": "good"}), log, "Panic")
    monkeypatch.undo()
    assert client.post("/classify", json={"input": "good"}).status_code == 200


@pytest.mark.parametrize("path", ["/classify", "/pooling", "/invocations"])
def test_a_forward_that_fails(
    client: TestClient, llm: LLM, log: io.StringIO, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The model's own code; what it says is for the log of a job, not for a client."""
    monkeypatch.setattr(type(llm._open.engine.runner), "mixed_logits", failing(lambda: RuntimeError(SECRETS)))
    check(client.post(path, json={"input": "good"}), log, "RunError", "because of", "RuntimeError")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (limits, "check_headers"), (limits, "read_body"), (auth.RequireKey, "_has_key"), (auth, "host_name"),
        (errors, "_client_message"), (errors, "_http"), (instrumentation, "header"), (ServerMetrics, "request_begun"),
    ],
)  # fmt: skip
def test_in_a_middleware(llm: LLM, log: io.StringIO, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    monkeypatch.setattr(owner, name, failing())
    with client_of(create_app(llm, ServerSettings(api_keys=("key",), allowed_hosts=("testserver",)))) as client:
        path, body = ("/nowhere", {}) if name == "_http" else ("/classify", {"input": [-1]})
        check(client.post(path, json=body), log, "RuntimeError")


def plugin(monkeypatch: pytest.MonkeyPatch, endpoint: Any, **options: Any) -> None:
    def routes(model: Any) -> APIRouter:
        router = APIRouter()
        router.get("/theirs", **options)(endpoint)
        return router

    module = SimpleNamespace(vcls_server_routes=hookimpl(routes))
    registry = Registry([PluginInfo("theirs", "a-distribution", "1.0", "module", module)])
    monkeypatch.setattr(vllm_cls.server.app, "registry", lambda: registry)


def test_a_route_of_a_plugin(llm: LLM, log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> None:
        raise LookupError(SECRETS) from ValueError(SECRETS)

    plugin(monkeypatch, fail)
    check(client_of(create_app(llm)).get("/theirs"), log, "LookupError", "because of", "ValueError")


@pytest.mark.parametrize(
    "answer",
    [
        lambda: {"number": SECRETS},  # which is no such model
        lambda: {"number": object()},
        lambda: Response("a", headers={"X-A": "a\r\nSet-Cookie: b"}),
        lambda: Response("a", status_code=99),
    ],
)
def test_an_answer_of_a_plugin_that_cannot_be_sent(
    llm: LLM, log: io.StringIO, monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Any]
) -> None:
    async def fail() -> Any:
        return answer()

    plugin(monkeypatch, fail, response_model=dict[str, int])
    found = client_of(create_app(llm)).get("/theirs")
    assert found.status_code == 500 and found.headers["X-Request-Id"] in found.json()["error"]["message"]
    assert "set-cookie" not in found.headers and SECRETS not in found.text
    assert f"request_id={found.headers['X-Request-Id']}" in log.getvalue()


def test_a_dead_engine_tells_no_places(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dead(*_: Any, **__: Any) -> None:
        raise EngineDeadError(f"the device failed ({SECRETS}); start again.") from RuntimeError(SECRETS)

    monkeypatch.setattr(AsyncLLM, "classify", dead)
    answer = client.post("/classify", json={"input": "good"})
    assert answer.status_code == 503
    assert (
        answer.json()["error"]["message"]
        == "the device failed (the text of a prompt at … by <object at …>); start again."
    )


def test_what_a_client_wrote_stays_in_what_it_is_told(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise PromptError("no /such/path as 0x12345 is taken.")

    monkeypatch.setattr(AsyncLLM, "classify", refuse)
    message = client.post("/classify", json={"input": "good"}).json()["error"]["message"]
    assert message == "no /such/path as 0x12345 is taken."
