"""How a server ends: what it has taken it answers, then it exits with the right code; in processes of their own."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from vllm_cls import LLM, AsyncLLM
from vllm_cls.errors import ConfigError
from vllm_cls.server import create_app
from vllm_cls.server.transport.listening import address, listen

from ..bare import JSON, ask, message_of

SCRIPT = """
import gc, sys, threading
from tests.server.bare import app_with
from vllm_cls.server.observability import logs
from vllm_cls.server.transport import lifecycle, listening
from vllm_cls.server.settings import ServerSettings

settings = ServerSettings(shutdown_timeout=float(sys.argv[1]), keep_alive_timeout=60)
alive = threading.Event()
alive.set()
app = app_with(settings)

@app.post("/die")
async def die() -> int:
    alive.clear()
    return gc.get_freeze_count()

logs.configure()
listener = listening.listen("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
sys.exit(lifecycle.run(app, settings, listener, alive.is_set))
"""

Start = Callable[..., tuple["subprocess.Popen[str]", int]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server with a shutdown timeout; its process and port."""
    started: list[subprocess.Popen[str]] = []

    def begin(shutdown_timeout: float, stderr: int | None = None) -> tuple[subprocess.Popen[str], int]:
        command = [sys.executable, "-c", SCRIPT, str(shutdown_timeout)]
        root = Path(__file__).parents[3]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # as users have it
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=root, env=buffered)
        started.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def post(port: int, path: str, connection: http.client.HTTPConnection | None = None) -> tuple[int, bytes]:
    """The status and body of one answer, on a connection of its own or on one that stays."""
    used = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    used.request("POST", path, body=b"{}", headers=JSON)
    answer = used.getresponse()
    body = answer.read()
    if connection is None:
        used.close()
    return answer.status, body


def in_background(function: Callable[[], Any], results: list[Any]) -> threading.Thread:
    def run() -> None:
        try:
            results.append(function())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_signal_under_load_loses_no_request(start: Start) -> None:
    """Clients on connections that stay, at every point of a request when the signal comes."""
    process, port = start(20)
    stopping = threading.Event()
    counts: list[Any] = []

    def client() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        answered = 0
        while not stopping.is_set():
            assert post(port, "/nap", connection) == (200, b'{"slept":1}')
            answered += 1
        connection.close()
        return answered

    threads = [in_background(client, counts) for _ in range(20)]
    time.sleep(0.7)
    stopping.set()
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(30)
    assert process.wait(20) == 0
    assert len(counts) == 20 and all(isinstance(each, int) and each >= 1 for each in counts), counts


def test_a_stopping_server_closes_connections_and_then_the_door(start: Start) -> None:
    process, port = start(20)
    waiting: list[Any] = []
    thread = in_background(lambda: post(port, "/nap"), waiting)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    post(port, "/size", connection)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    connection.request("POST", "/size", body=b"{}", headers=JSON)  # still answered, and told to be the last
    answer = connection.getresponse()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    answer.read()
    assert process.wait(20) == 0
    thread.join(5)
    assert waiting == [(200, b'{"slept":1}')]
    with pytest.raises(ConnectionRefusedError):
        post(port, "/size")


def test_what_takes_longer_than_the_timeout_is_told_so(start: Start) -> None:
    process, port = start(3)
    waiting: list[Any] = []
    thread = in_background(lambda: post(port, "/sleep"), waiting)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    thread.join(5)
    ((status, body),) = waiting
    assert (status, b"shutting down" in body) == (503, True)


def test_a_second_signal_ends_at_once(start: Start) -> None:
    process, port = start(60)
    waiting: list[Any] = []
    thread = in_background(lambda: post(port, "/sleep"), waiting)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    thread.join(5)
    assert isinstance(waiting[0], (ConnectionError, http.client.HTTPException))


def test_a_signal_while_a_line_is_logged_ends_it_too(start: Start) -> None:
    """The log goes to a pipe that nobody reads: once it is full, the server stands in the middle of a line."""
    read, write = os.pipe()
    process, port = start(2, stderr=write)
    os.close(write)
    try:
        with (
            closing(http.client.HTTPConnection("127.0.0.1", port, timeout=3)) as connection,
            pytest.raises(TimeoutError),
        ):
            for _ in range(10_000):
                post(port, "/size", connection)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        os.close(read)


def test_a_dead_engine_ends_the_process_with_an_error(start: Start) -> None:
    process, port = start(20)
    status, frozen = post(port, "/die")
    assert status == 200
    assert int(frozen) > 10_000  # objects that garbage collections leave alone
    assert process.wait(20) == 1


def test_health_and_readiness(llm: LLM) -> None:
    engine = AsyncLLM(llm)
    app = create_app(engine)
    assert [ask(app, "GET", path).status_code for path in ("/health", "/ping", "/ready")] == [200, 200, 200]
    app.state.draining = True
    assert [ask(app, "GET", path).status_code for path in ("/health", "/ping", "/ready")] == [200, 200, 503]
    app.state.draining = False
    engine.close()
    answers = [ask(app, "GET", path) for path in ("/health", "/ping", "/ready")]
    answers.append(ask(app, "POST", "/classify", json={"input": "x"}))
    assert [each.status_code for each in answers] == [503] * 4
    assert all(message_of(each) for each in answers)


def test_a_killed_engine_shows(llm: LLM) -> None:
    engine = AsyncLLM(llm)
    app = create_app(engine)

    def die(*_: Any) -> None:
        raise SystemExit("a fault")

    engine._batching._run = die
    assert ask(app, "POST", "/classify", json={"input": "x"}).status_code == 503
    engine._batching._thread.join(10)
    assert [ask(app, "GET", path).status_code for path in ("/health", "/ready")] == [503, 503]
    assert "vcls_engine_alive 0.0" in ask(app, "GET", "/metrics").text
    engine.close()


def test_an_address_that_is_taken_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ConfigError, match="--port"):
            listen("127.0.0.1", taken.getsockname()[1])
        assert address(taken).startswith("http://127.0.0.1:")
