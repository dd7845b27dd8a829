"""Prometheus metrics of a server, in a registry of its own, so that several apps in a process do not mix."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_POWERS = tuple(float(2**power) for power in range(17))
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_MOST_LABELS = 1000
_OTHER = "(other)"


class Stage(NamedTuple):
    """A part of a request's time, on the clock `time.perf_counter`."""

    name: str
    began: float
    ended: float


stages_of_request: ContextVar[list[Stage] | None] = ContextVar("stages_of_request", default=None)
"""Where somebody wants to see each request's stages, as traces do: what the request of this task went through."""


class LoadGauges(Protocol):
    """Gauges that are read when the metrics are scraped."""

    @property
    def load(self) -> int: ...

    @property
    def queued_tokens(self) -> int: ...

    @property
    def is_alive(self) -> bool: ...


class ServerMetrics:
    """The telemetry of an engine and the requests of a server.

    The number of series is bounded: routes are templates, unknown methods are one, labels beyond a thousand are one. What tells
    of texts (how long they are, what they begin with, what they were found to be) is in a registry of its own.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.of_texts = of_texts = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "vcls_http_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self._request_seconds = Histogram(
            "vcls_http_request_seconds",
            "From a request's headers to its answer.",
            ("route",),
            registry=registry,
            buckets=_SECONDS,
        )
        self._in_flight = Gauge("vcls_http_requests_in_flight", "Requests not answered yet.", registry=registry)
        self._stages = Histogram(
            "vcls_stage_seconds", "Time of a request by stage.", ("stage",), registry=registry, buckets=_SECONDS
        )
        self._prompts = Counter("vcls_prompts", "Prompts that came.", registry=registry)
        self._prompt_tokens = Counter("vcls_prompt_tokens", "Tokens of prompts that came.", registry=of_texts)
        self._batch_sequences = Histogram(
            "vcls_batch_sequences", "Sequences that ran together.", registry=of_texts, buckets=_POWERS
        )
        self._batch_tokens = Histogram(
            "vcls_batch_tokens", "Tokens that ran together.", registry=of_texts, buckets=_POWERS
        )
        self._batch_fill = Histogram(
            "vcls_batch_fill", "Tokens of a batch over its budget.", registry=of_texts,
            buckets=(0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0),
        )  # fmt: skip
        self._saved = Counter(
            "vcls_prefix_tokens_saved",
            "Tokens not computed: beginnings in common, identical prompts.",
            registry=of_texts,
        )
        self._rejections = Counter(
            "vcls_rejections", "Requests that got no result, by reason.", ("reason",), registry=registry
        )
        self._truncations = Counter("vcls_truncated_prompts", "Prompts that were cut.", registry=of_texts)
        self._predictions = Counter("vcls_predictions", "Texts by predicted label.", ("label",), registry=of_texts)
        self._labels: set[str] = set()
        self._watched: LoadGauges | None = None

    @classmethod
    def for_engine(cls, engine: LoadGauges) -> ServerMetrics:
        """The metrics that are `engine`'s telemetry already, or else new ones; gauges show its queue."""
        telemetry = getattr(engine, "telemetry", None)
        metrics = telemetry if isinstance(telemetry, cls) else cls()
        if metrics._watched is not engine:
            metrics._watch(engine)
        return metrics

    def _watch(self, engine: LoadGauges) -> None:
        """Show how much waits in `engine`, and whether it lives, whenever the metrics are read."""
        self._watched = engine
        for name, documentation, registry, value in (
            ("vcls_queue_requests", "Requests in the engine: waiting or running.", self.registry, lambda: engine.load),
            ("vcls_queue_tokens", "Tokens that wait for the device.", self.of_texts, lambda: engine.queued_tokens),
            ("vcls_engine_alive", "1 while the engine runs.", self.registry, lambda: engine.is_alive),
        ):
            Gauge(name, documentation, registry=registry).set_function(value)

    def render(self, texts: bool = True) -> bytes:
        """Everything, in Prometheus' text format; or what tells nothing of texts."""
        return generate_latest(self.registry) + (generate_latest(self.of_texts) if texts else b"")

    # Of requests; called by the middleware.

    def request_begun(self) -> None:
        self._in_flight.inc()

    def request_done(self, method: str, route: str, status: str, seconds: float) -> None:
        """Args:
        status: of HTTP, or "gone" where the client did not wait.
        """
        self._in_flight.dec()
        self._requests.labels(method if method in _METHODS else _OTHER, route, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    # Of the engine; the protocol `telemetry.Telemetry`.

    def request_queued(self, prompts: int, tokens: int) -> None:
        self._prompts.inc(prompts)
        self._prompt_tokens.inc(tokens)

    def stage(self, name: str, began: float, ended: float) -> None:
        self._stages.labels(name).observe(ended - began)
        stages = stages_of_request.get()
        if stages is not None:
            stages.append(Stage(name, began, ended))

    def batch(self, sequences: int, tokens: int, budget: int, tokens_saved: int) -> None:
        self._batch_sequences.observe(sequences)
        self._batch_tokens.observe(tokens)
        self._batch_fill.observe(tokens / budget)
        self._saved.inc(tokens_saved)

    def rejected(self, reason: str) -> None:
        self._rejections.labels(reason).inc()

    def truncated(self, count: int) -> None:
        self._truncations.inc(count)

    def predicted(self, label: str) -> None:
        if label not in self._labels and len(self._labels) >= _MOST_LABELS:
            label = _OTHER
        self._labels.add(label)
        self._predictions.labels(label).inc()
