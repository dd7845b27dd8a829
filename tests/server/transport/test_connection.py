"""Connections to a server, at the level of bytes: what a client sends ahead waits, what it does not read is not kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from vllm_cls.server.transport.connection import ConnectionLimits, ServerConnection, connection_class

from ..bare import app_with, run
from .test_framing import CHUNKED, DOUBTFUL, POST

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLOSED = b"connection: close\r\n"
LIMITS = ConnectionLimits(header_timeout=5, write_timeout=5, max_connections=100)


@asynccontextmanager
async def listening(app: Any, made: list[ServerConnection], limits: ConnectionLimits = LIMITS) -> AsyncIterator[int]:
    """The port where our connections bring requests to an app.

    Args:
        made: gets the connections.
    """
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)

    def connect() -> ServerConnection:
        made.append(connection_class(limits)(config=config, server_state=ServerState(), app_state={}))
        return made[-1]

    server = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for each in made:
            each.transport.abort()
        await asyncio.sleep(0)


async def answers_to(data: bytes) -> bytes:
    """All that comes back until the server closes the connection; a good request is sent behind, which does not ask for it."""
    async with listening(app_with(), []) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data + HEALTH)
        answers = await reader.read()
        writer.close()
        return answers


@pytest.mark.parametrize("data", DOUBTFUL.values(), ids=DOUBTFUL)
def test_a_request_in_doubt_is_the_last_of_its_connection(data: bytes) -> None:
    answer = run(lambda: answers_to(data))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1 and int(head.split()[1]) in (400, 501), answer
    assert CLOSED in head + b"\r\n" and b'"error"' in body


@pytest.mark.parametrize("body", [b"1\r\nabc\r\n", b"zz\r\n"])
def test_a_body_in_doubt_of_a_request_that_has_its_answer(body: bytes) -> None:
    """It is not answered twice: a second answer would be taken for that to the next request."""

    async def early(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def scenario() -> bytes:
        async with listening(early, []) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(CHUNKED)
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(body + HEALTH)
            rest = await reader.read()
            writer.close()
            return head + rest

    assert run(scenario).count(b"HTTP/1.1 ") == 1


def test_what_comes_behind_the_last_request_is_none() -> None:
    """RFC 9112, 9.6; some clients send an empty line behind a body."""

    async def scenario() -> bytes:
        async with listening(app_with(), []) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(POST.replace(b"/size", b"/nap") + b"Connection: close\r\n\r\n")
            for _ in range(3):
                await asyncio.sleep(0.02)
                writer.write(b"\r\n")
            answer = await reader.read()
            writer.close()
            return answer

    answer = run(scenario)
    assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1 ") == 1


def watching(size: int, made: list[ServerConnection], kept: list[int]) -> Any:
    """An app whose answers have so many bytes, and which asks meanwhile whether its client is there.

    Args:
        kept: gets the bytes that the connection holds unread at each request.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kept.append(len(made[0].conn.trailing_data[0]))
        watcher = asyncio.ensure_future(receive())
        for _ in range(5):
            await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": b"." * size})
        await watcher

    return app


def test_requests_sent_ahead_wait_in_the_network() -> None:
    """8 MB of them, one answered after the other: the server reads on when it has answered what it has read."""
    made: list[ServerConnection] = []
    kept: list[int] = []
    request = HEALTH[:-2] + b"X-Fill: " + b"a" * 8000 + b"\r\n\r\n"

    async def scenario() -> None:
        async with listening(watching(1, made, kept), made) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request * 1000)
            for _ in range(1000):
                assert (await reader.readuntil(b"\r\n\r\n.")).startswith(b"HTTP/1.1 200")
            writer.close()

    run(scenario)
    assert len(kept) == 1000 and max(kept) < 600_000


def test_answers_that_nobody_reads_are_not_made() -> None:
    """What is not taken in time breaks the connection; until then no more is answered, nor read, than buffers hold."""
    made: list[ServerConnection] = []
    kept: list[int] = []

    async def scenario() -> None:
        async with listening(watching(100_000, made, kept), made, replace(LIMITS, write_timeout=0.5)) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
            with pytest.raises(ConnectionError):
                while True:  # as long as anything is taken of them
                    writer.write(HEALTH * 1000)
                    await writer.drain()
            writer.close()

    run(scenario)
    assert max(kept) < 600_000 and len(kept) < 500
