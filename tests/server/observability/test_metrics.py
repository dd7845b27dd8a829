"""What is told of requests: counts, logs, traces; bounded, and without their texts."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from vllm_cls.server.middleware.instrumentation import safe_id
from vllm_cls.server.observability import logs
from vllm_cls.server.observability.metrics import ServerMetrics
from vllm_cls.server.observability.tracing import Tracing
from vllm_cls.server.settings import ServerSettings

from ..bare import JSON, app_with, ask, message_of


def value(metrics: ServerMetrics, sample: str) -> float | None:
    """The value of one line of /metrics."""
    found = re.search(rf"^{re.escape(sample)} (\S+)$", metrics.render().decode(), re.MULTILINE)
    return float(found[1]) if found else None


def test_requests_by_route_and_status() -> None:
    app = app_with(ServerSettings(max_body_bytes=10))
    metrics = app.state.metrics
    for number in range(3):
        ask(app, "GET", f"/items/{number}")
    ask(app, "GET", "/items/x")
    ask(app, "GET", "/nowhere/1")
    ask(app, "GET", "/nowhere/2")
    ask(app, "POST", "/size", content=b"{}", headers=JSON)
    ask(app, "POST", "/size", content=b" " * 11, headers=JSON)
    ask(app, "GET", "/health")
    ask(app, "BREW", "/health")
    counts = "vcls_http_requests_total"
    assert value(metrics, f'{counts}{{method="GET",route="/items/{{number}}",status="200"}}') == 3
    assert value(metrics, f'{counts}{{method="GET",route="/items/{{number}}",status="422"}}') == 1
    assert value(metrics, f'{counts}{{method="GET",route="unmatched",status="404"}}') == 2
    assert value(metrics, f'{counts}{{method="POST",route="/size",status="413"}}') == 1
    assert value(metrics, f'{counts}{{method="(other)",route="/health",status="405"}}') == 1
    assert value(metrics, "vcls_http_requests_in_flight") == 0
    assert value(metrics, 'vcls_http_request_seconds_count{route="/items/{number}"}') == 4


def test_two_apps_count_apart() -> None:
    one, other = app_with(), app_with()
    ask(one, "GET", "/health")
    sample = 'vcls_http_requests_total{method="GET",route="/health",status="200"}'
    assert (value(one.state.metrics, sample), value(other.state.metrics, sample)) == (1, None)


def test_what_an_engine_tells() -> None:
    metrics = ServerMetrics()
    metrics.request_queued(3, 40)
    for stage in ("queue", "tokenize", "compute", "respond"):
        metrics.stage(stage, 1.0, 1.02)
    metrics.batch(4, 64, 128, 10)
    metrics.rejected("queue_full")
    metrics.truncated(2)
    metrics.predicted("good")
    assert value(metrics, "vcls_prompts_total") == 3
    assert value(metrics, "vcls_prompt_tokens_total") == 40
    assert value(metrics, 'vcls_stage_seconds_bucket{le="0.025",stage="queue"}') == 1
    assert value(metrics, 'vcls_batch_fill_bucket{le="0.5"}') == 1
    assert value(metrics, "vcls_batch_sequences_sum") == 4
    assert value(metrics, "vcls_prefix_tokens_saved_total") == 10
    assert value(metrics, 'vcls_rejections_total{reason="queue_full"}') == 1
    assert value(metrics, "vcls_truncated_prompts_total") == 2
    assert value(metrics, 'vcls_predictions_total{label="good"}') == 1


def test_labels_are_bounded() -> None:
    metrics = ServerMetrics()
    for number in range(1500):
        metrics.predicted(f"label {number}")
    assert value(metrics, 'vcls_predictions_total{label="(other)"}') == 500
    metrics.predicted("label 1")
    assert value(metrics, 'vcls_predictions_total{label="label 1"}') == 2


class Engine:
    """What an engine shows of itself."""

    def __init__(self) -> None:
        self.telemetry = ServerMetrics()
        self.load, self.queued_tokens, self.is_alive = 5, 77, True


def test_an_engine_is_asked_when_somebody_reads() -> None:
    engine = Engine()
    metrics = ServerMetrics.for_engine(engine)
    assert metrics is engine.telemetry
    assert ServerMetrics.for_engine(engine) is metrics  # a second app of the same engine
    engine.load = 6
    assert value(metrics, "vcls_queue_requests") == 6
    assert value(metrics, "vcls_queue_tokens") == 77
    assert value(metrics, "vcls_engine_alive") == 1


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged as JSON lines."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.LineFormatter("json"))
    level = logs.logger.level
    logs.logger.addHandler(handler)
    logs.logger.setLevel("INFO")
    yield stream
    logs.logger.removeHandler(handler)
    logs.logger.setLevel(level)


def test_a_line_for_each_request(lines: io.StringIO) -> None:
    app = app_with()
    answer = ask(app, "POST", "/size", content=b'{"a": "secret"}', headers={**JSON, "X-Request-Id": "mine"})
    ask(app, "GET", "/health")  # a probe: not worth a line
    (line,) = [json.loads(each) for each in lines.getvalue().splitlines()]
    assert answer.headers["X-Request-Id"] == line["request_id"] == "mine"
    assert (line["method"], line["route"], line["status"], line["level"]) == ("POST", "/size", "200", "info")
    assert line["seconds"] >= 0


def test_a_fault_is_told_to_the_log_alone_and_without_texts(lines: io.StringIO) -> None:
    answer = ask(app_with(), "POST", "/fail")
    assert answer.status_code == 500
    identity = answer.headers["X-Request-Id"]
    assert (
        message_of(answer) == f"The server failed at this request; its log says why, under the request id {identity}."
    )
    told = lines.getvalue()
    assert "ValueError" in told and "in fail" in told
    assert "the text of a prompt" not in told
    assert answer.headers["X-Request-Id"] in told


def test_text_lines_show_an_exception_without_its_message() -> None:
    try:
        raise ValueError("the text of a prompt")
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "broken %s", ("thing",), (type(error), error, None))
    text = logs.LineFormatter("text").format(record)
    assert "ERROR" in text and "broken thing" in text and "ValueError" in text
    assert "prompt" not in text


@pytest.mark.parametrize("given", ["a\r\nX: y", "é" * 3, "a b", "x" * 1000])
def test_ids_are_made_safe(given: str) -> None:
    safe = safe_id(given)
    assert len(safe) <= 256 and safe.isascii() and not re.search(r"\s", safe)


def test_traces_go_on_from_the_client() -> None:
    exporters = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = exporters.InMemorySpanExporter()
    tracing = Tracing(exporter)
    app = app_with(tracing=tracing)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    ask(app, "GET", "/items/5", headers={"traceparent": parent})
    ask(app, "POST", "/fail", headers={"traceparent": "nonsense"})
    tracing.close()
    good, bad = exporter.get_finished_spans()
    assert good.name == "GET /items/{number}"
    assert format(good.context.trace_id, "032x") == "0af7651916cd43dd8448eb211c80319c"
    assert format(good.parent.span_id, "016x") == "b7ad6b7169203331"
    assert (good.attributes["http.response.status_code"], good.attributes["http.route"]) == (200, "/items/{number}")
    assert bad.parent is None and not bad.status.is_ok
    assert "prompt" not in bad.to_json()
