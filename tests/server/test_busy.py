"""A device that is busy: requests that are late or too many are told so, counted, and their time is seen in traces."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

import vllm_cls.server.app
import vllm_cls.server.routes.classify
from vllm_cls import LLM, AsyncLLM
from vllm_cls.server import ServerSettings, create_app
from vllm_cls.server.observability.tracing import Tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@contextmanager
def busy(llm: LLM) -> Iterator[None]:
    """Whatever the device is given meanwhile waits."""
    with llm._open.engine._lock:
        yield


def counted(client: TestClient, line: str) -> float:
    """A value among the metrics."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(each.rpartition(" ")[2]) for each in lines if each.startswith(line))


def test_a_late_request_is_counted_as_late(llm: LLM) -> None:
    with TestClient(create_app(llm, ServerSettings(request_timeout=0.1))) as client, busy(llm):
        answer = client.post("/classify", json={"input": "good"})
        assert answer.status_code == 504 and answer.json()["error"]["type"] == "TimeoutError"
        assert counted(client, 'vcls_rejections_total{reason="deadline"}') == 1
        assert counted(client, 'vcls_rejections_total{reason="cancelled"}') == 0
        assert client.get("/load").json() == {"server_load": 0}
        assert counted(client, "vcls_queue_tokens") == 0


def test_what_comes_before_the_model_takes_of_its_time(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a chat template that takes long to render."""

    async def slow(*_: Any) -> list[str]:
        await asyncio.sleep(0.15)
        return ["good"]

    monkeypatch.setattr(vllm_cls.server.routes.classify, "prompts_of", slow)
    with TestClient(create_app(llm, ServerSettings(request_timeout=0.1))) as client, busy(llm):
        assert client.post("/classify", json={"input": "good"}).status_code == 504
        assert counted(client, 'vcls_rejections_total{reason="deadline"}') == 1


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"prompt": "good"}), ("/detokenize", {"tokens": [5]})])
def test_tokenizing_has_places_too(llm: LLM, path: str, body: dict[str, Any]) -> None:
    engine = AsyncLLM(llm, max_queued_requests=1)
    try:
        with TestClient(create_app(engine)) as client:
            with engine._queue.place():
                answer = client.post(path, json=body)
                assert answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 1
            assert client.post(path, json=body).status_code == 200
            assert engine.load == 0
    finally:
        engine.close()


def test_a_trace_shows_where_the_time_went(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    exporters = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = exporters.InMemorySpanExporter()
    tracing = Tracing(exporter)
    monkeypatch.setattr(vllm_cls.server.app.Tracing, "to", lambda endpoint: tracing)
    with TestClient(create_app(llm, ServerSettings(otlp_traces_endpoint="memory"))) as client:
        client.post("/classify", json={"input": "good"}, headers={"traceparent": PARENT})
        client.post("/classify", json={"input": "good", "model": "nobody"})
    tracing.close()
    spans = exporter.get_finished_spans()
    request, refused = (each for each in spans if each.name == "POST /classify")
    stages = [each for each in spans if each.parent and each.parent.span_id == request.context.span_id]
    assert [each.name for each in stages] == ["tokenize", "queue", "compute", "respond"]
    moments = [request.start_time, *(each.start_time for each in stages)]
    assert moments == sorted(moments)
    # The clocks of spans and stages are two, a few microseconds apart.
    assert all(each.start_time <= each.end_time <= request.end_time + 5_000_000 for each in stages)
    assert not [each for each in spans if each.parent and each.parent.span_id == refused.context.span_id]
    assert format(request.context.trace_id, "032x") == PARENT.split("-")[1]
