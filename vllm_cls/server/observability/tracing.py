"""OpenTelemetry: a span for each request, which continues the trace that the client began (W3C `traceparent`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..asgi import Scope, header
from .metrics import Stage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span


class Tracing:
    """Spans of the requests of one app, in a provider of its own: nothing global is touched.

    Args:
        exporter: where finished spans go, in the background.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider = TracerProvider(resource=Resource.create({"service.name": "vllm-cls"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("vllm_cls.server")

    @classmethod
    def to(cls, endpoint: str) -> Tracing:
        """Spans sent to a collector by OTLP over HTTP.

        Args:
            endpoint: the full address, such as `http://localhost:4318/v1/traces`.

        Raises:
            ConfigError: the extra is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            hint = "install it with: pip install 'vllm-cls[otel]'"
            raise ConfigError(f"--otlp-traces-endpoint needs OpenTelemetry; {hint}.") from error
        return cls(OTLPSpanExporter(endpoint=endpoint))

    def span(self, scope: Scope) -> AbstractContextManager[Span]:
        """The span of a request, as a context: what it encloses can add spans below it."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {name: header(scope, name) or "" for name in ("traceparent", "tracestate")}
        parent = TraceContextTextMapPropagator().extract(carrier)
        return self._tracer.start_as_current_span(
            scope["method"],
            context=parent,
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "url.path": scope["path"]},
            record_exception=False,  # its message may quote a request
            set_status_on_exception=False,
        )

    def add_stages(self, span: Span, stages: Sequence[Stage]) -> None:
        """Put the stages of a request below its span: where its time went."""
        from opentelemetry.trace import set_span_in_context

        below, epoch = set_span_in_context(span), time.time() - time.perf_counter()
        for name, began, ended in stages:
            start, end = (int((epoch + moment) * 1e9) for moment in (began, ended))
            self._tracer.start_span(name, context=below, start_time=start).end(end)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def describe(span: Any, method: str, route: str, status: int | None, request_id: str) -> None:
    """Complete a span with what is known at the end of its request."""
    from opentelemetry.trace import StatusCode

    span.update_name(f"{method} {route}")
    span.set_attributes({"http.route": route, "vcls.request_id": request_id})
    if status is not None:
        span.set_attribute("http.response.status_code", status)
    if status is None or status >= 500:
        span.set_status(StatusCode.ERROR)
