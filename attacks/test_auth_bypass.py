"""Without a key: by the Host header, by writing a path otherwise, by a route that nobody guarded, by timing."""

from __future__ import annotations

import statistics
import time

import pytest

from .conftest import KEY, LAST, Target, answers_in, status_of


@pytest.mark.parametrize(
    "host", ["localhost/health?", "localhost/health#", "health@localhost", "localhost:80/health?x=", "[::1]/health?"]
)
def test_host_header_names_an_open_path(server: Target, host: str) -> None:
    """Servers that decide on the URL made of the Host header let this through."""
    assert server.refused(server.get("/v1/models", f"Host: {host}")) == 400


@pytest.mark.parametrize(
    "target",
    ["/health/../v1/models", "//v1/models", "/%76%31/models", "/v1/models?/health", "/v1/models;/health", "/v1/models/",
     "http://localhost/v1/models", "/health%2f..%2fv1%2fmodels"],
)  # fmt: skip
def test_paths_written_otherwise(server: Target, target: str) -> None:
    assert server.answered(server.get(target)) == 401


def test_a_target_with_a_host_of_its_own(server: Target) -> None:
    """Which is the one that counts (RFC 9112, 3.2.2), for the guard of hosts too."""
    port = server.port
    assert server.answered(server.get(f"http://127.0.0.1:{port}/health")) == 200
    assert server.answered(server.get(f"http://localhost:{port}/health", "Host: evil.example")) == 200
    assert server.answered(server.get("http://evil.example/health", "Host: localhost")) == 400
    assert server.refused(server.get("http://localhost@evil.example/health", "Host: localhost")) == 400
    assert server.refused(server.get("ftp://localhost/health", "Host: localhost")) == 400


def test_forms_of_a_target_that_name_no_path(server: Target) -> None:
    assert server.answered(server.get("*", method="OPTIONS")) == 405
    assert server.refused(server.get("*")) == 400
    assert server.refused(server.get("health")) == 400
    assert server.refused(server.get("evil.example:443", method="CONNECT")) == 501


def test_rebinding_dns(server: Target) -> None:
    """A page whose name was made to mean 127.0.0.1 is of the same origin as the server."""
    answer = server.ask("/v1/models", headers={"Host": "evil.example"})
    assert answer.status_code == 400


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE", "TRACE"])
def test_every_route_is_guarded(server: Target, method: str) -> None:
    known = set(server.ask("/openapi.json").json()["paths"])
    assert {"/classify", "/v1/models", "/metrics", "/tokenize"} <= known
    for path in sorted(known | {"/docs", "/openapi.json", "/redoc", "/static", "/debug"}):
        if path in {"/", "/health", "/ping", "/ready"}:
            continue
        answer = server.raw(server.get(path, "Host: localhost", "Connection: close", method=method))
        assert b" 401 " in answer.partition(b"\r\n")[0], path


def test_open_routes_tell_nothing_of_the_model(server: Target) -> None:
    for path in ("/health", "/ping", "/ready"):
        answer, _ = answers_in(server.raw(server.get(path) + LAST))
        assert status_of(answer) == 200 and answer[1] == b""


def test_the_time_of_a_wrong_key_does_not_depend_on_its_beginning(server: Target) -> None:
    """Keys are compared as digests; this finds a gross difference only, such as a sleep or a lookup by prefix."""

    def seconds(key: str) -> float:
        started = time.perf_counter()
        assert server.ask("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 401
        return time.perf_counter() - started

    near, far = KEY[:-1] + "?", "?" * len(KEY)
    pairs = [(seconds(near), seconds(far)) for _ in range(15)]
    difference = statistics.median(one - other for one, other in pairs)
    assert abs(difference) < 0.05
