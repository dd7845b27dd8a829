"""What a request may cost, decided before a route sees it; each limit lets the last good request through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from vllm_cls.server.errors import RequestError
from vllm_cls.server.middleware.limits import Limits, run_until_disconnected
from vllm_cls.server.middleware.request_body import BufferedBytes, ClientDisconnected, is_deeper, read_body
from vllm_cls.server.settings import ServerSettings

from ..bare import JSON, app_with, ask, message_of, run

SMALL = ServerSettings(max_body_bytes=100, max_json_depth=3, max_header_bytes=1000, max_headers=8)


def test_a_body_of_the_longest_length() -> None:
    app = app_with(SMALL)
    assert ask(app, "POST", "/size", content=b" " * 100, headers=JSON).json() == {"size": 100}
    answer = ask(app, "POST", "/size", content=b" " * 101, headers=JSON)
    assert answer.status_code == 413
    assert "100 bytes" in message_of(answer)


def test_a_chunked_body() -> None:
    async def chunks(number: int) -> AsyncIterator[bytes]:
        for _ in range(number):
            yield b" " * 25

    app = app_with(SMALL)
    assert ask(app, "POST", "/size", content=chunks(4), headers=JSON).json() == {"size": 100}
    assert ask(app, "POST", "/size", content=chunks(5), headers=JSON).status_code == 413


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200), ("Application/JSON; charset=utf-8", 200), ("application/cloudevents+json", 200),
        ("text/plain", 415), ("application/jsonp", 415), ("text/json", 415), ("", 415), ("application", 415),
    ],
)  # fmt: skip
def test_content_types(kind: str, status: int) -> None:
    assert ask(app_with(), "POST", "/size", content=b"{}", headers={"Content-Type": kind}).status_code == status


def test_no_body_needs_no_type_and_a_body_none_of_its_own() -> None:
    assert ask(app_with(), "POST", "/size").status_code == 200
    assert ask(app_with(), "POST", "/size", content=b"{}").status_code == 415
    assert (
        ask(app_with(), "POST", "/size", content=b"x", headers={**JSON, "Content-Encoding": "gzip"}).status_code == 415
    )


def test_headers() -> None:
    app = app_with(SMALL)
    assert ask(app, "GET", "/health", headers={"X-A": "a" * 500}).status_code == 200
    assert ask(app, "GET", "/health", headers={"X-A": "a" * 1000}).status_code == 431
    assert ask(app, "GET", "/health?" + "a" * 1000).status_code == 431
    assert ask(app, "GET", "/health", headers={f"X-{number}": "a" for number in range(8)}).status_code == 431


@pytest.mark.parametrize(
    ("body", "deeper"),
    [
        (b"[[[]]]", False), (b"[[[[]]]]", True), (b'{"a": [{}, {}, {"b": 1}]}', False), (b'{"a": [{"b": [1]}]}', True),
        (b'["[[[[[["]', False), (b'["\\"[[[[[["]', False), (b'["\\\\", [[[[]]]]]', True), (b'["\\\\\\"[[[["]', False),
        (b"[" * 1000, True), (b"[]" * 1000, False), (b"]" * 1000, False), (b'"' + b'\\"' * 1000, False), (b"[[]][[[", False),
    ],
)  # fmt: skip
def test_depth(body: bytes, deeper: bool) -> None:
    assert is_deeper(body, 3) is deeper


def test_depth_of_a_long_body_is_found_in_bounded_passes() -> None:
    """Neither quotes that are never closed nor stairs of brackets take more than a few copies of the body."""
    for body in (b'\\"' * 500_000, b'"' * 1_000_000, b"[[]" * 300_000, b"[]" * 500_000, b'["\\' * 300_000):
        is_deeper(body, 32)
    answer = ask(app_with(), "POST", "/size", content=b"[" * 200_000, headers=JSON)
    assert (answer.status_code, "deeper" in message_of(answer)) == (400, True)


def receiver(*messages: dict[str, Any]) -> Any:
    """An ASGI receive that says these, and then nothing more."""
    waiting = list(messages)

    async def receive() -> Any:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    return receive


def part(body: bytes) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": True}


def test_a_slow_body_is_given_up_and_its_bytes_are_given_back() -> None:
    buffered = BufferedBytes(100)

    async def read() -> None:
        with pytest.raises(RequestError, match="longer than 0.05 s") as raised:
            await read_body({"headers": []}, receiver(part(b"half")), buffered, 100, 0.05)
        assert raised.value.status == 408

    run(read)
    assert buffered.held == 0


def test_bodies_share_what_may_be_held() -> None:
    buffered = BufferedBytes(10)

    async def read() -> None:
        whole = {"type": "http.request", "body": b"1234567", "more_body": False}
        assert await read_body({"headers": []}, receiver(whole), buffered, 100, 1) == b"1234567"
        with pytest.raises(RequestError) as raised:
            await read_body({"headers": []}, receiver(whole), buffered, 100, 1)
        assert raised.value.status == 503

    run(read)
    assert buffered.held == 7


def test_a_client_that_leaves_while_it_sends() -> None:
    async def read() -> None:
        with pytest.raises(ClientDisconnected):
            await read_body({"headers": []}, receiver(part(b"x"), {"type": "http.disconnect"}), BufferedBytes(9), 9, 1)

    run(read)


def test_a_request_that_takes_too_long_is_dropped() -> None:
    app = app_with(ServerSettings(request_timeout=0.05))
    answer = ask(app, "POST", "/sleep")
    assert answer.status_code == 504
    assert "--request-timeout" in message_of(answer)
    assert app.state.cancelled == 1


def test_the_work_of_a_client_that_left_is_dropped() -> None:
    app = app_with()

    async def leave() -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        waiting = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if waiting:
                return waiting.pop()
            await asyncio.sleep(0.05)
            return {"type": "http.disconnect"}

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/sleep",
            "headers": [],
            "query_string": b"",
            "root_path": "",
        }
        await app(scope, receive, send)
        assert sent == []

    run(leave)
    assert app.state.cancelled == 1
    assert 'route="/sleep",status="gone"' in app.state.metrics.render().decode()


def test_work_after_the_answer_is_not_cut_off() -> None:
    """A server says that the client is gone as soon as it has the whole answer."""
    done: list[str] = []

    async def scenario() -> None:
        over = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            over.set()
            await asyncio.sleep(0.05)
            done.append("background")

        async def receive() -> Any:
            await over.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        await run_until_disconnected(app, {}, b"", receive, send, 0.01)

    run(scenario)
    assert done == ["background"]


def test_sockets_and_lifespans_pass() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def pass_through() -> None:
        for kind in ("lifespan", "websocket"):
            await Limits(app, SMALL)({"type": kind}, receiver(), receiver())

    run(pass_through)
    assert seen == ["lifespan", "websocket"]
