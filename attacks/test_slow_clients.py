"""Slowloris: clients that say a little, or nothing, or do not listen."""

from __future__ import annotations

import select
import time

import pytest

from .conftest import KEY, Target, answers_in, read_all, status_of


def test_half_a_header(server: Target) -> None:
    held = [server.connect() for _ in range(30)]
    for connection in held:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: localhost\r\n")
    assert server.ask("/classify", {"input": "meanwhile"}).status_code == 200
    for connection in held:
        with connection:
            assert read_all(connection) == b""


def test_a_byte_at_a_time(server: Target) -> None:
    """The time is that of the whole header, not of the silence between two bytes."""
    with server.connect() as connection:
        started = time.monotonic()
        try:
            for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        except ConnectionError:
            pass
        assert time.monotonic() - started < 20


def test_a_body_that_does_not_come(server: Target) -> None:
    """Half a body holds no worker, is refused in time, and then the connection ends."""
    held = [server.connect() for _ in range(30)]
    for connection in held:
        connection.sendall(server.post(b'{"input"', "Content-Length: 100"))
    assert server.ask("/classify", {"input": "meanwhile"}).status_code == 200
    for connection in held:
        with connection:
            (answer,) = answers_in(read_all(connection))
            assert status_of(answer) == 408


def test_nothing_after_connecting_and_half_open(server: Target) -> None:
    held = [server.connect() for _ in range(30)]
    for connection in held:
        with connection:
            assert read_all(connection) == b""


def test_answers_that_nobody_reads(server: Target) -> None:
    """They are not made any more once buffers are full, requests are not taken any more, and the connection is broken."""
    request = server.get("/openapi.json", "Host: localhost", f"Authorization: Bearer {KEY}")
    with server.connect() as connection, pytest.raises(ConnectionError):  # if it were not, sending would time out
        while True:
            connection.sendall(request)


@pytest.mark.parametrize("reads", [True, False])
def test_requests_sent_ahead_without_a_key(server: Target, reads: bool) -> None:
    """One after the other waits for its answer in the network: nothing of them is kept here."""
    before, until, unsent = server.resident(), time.monotonic() + 3, b""
    with server.connect() as connection:
        connection.setblocking(False)
        while time.monotonic() < until:
            readable, writable, _ = select.select([connection] if reads else [], [connection], [], 0.1)
            if readable:
                assert connection.recv(1 << 20)
            if writable:
                unsent = unsent or server.get("/health") * 1000
                unsent = unsent[connection.send(unsent) :]
        assert server.resident() < before + (20 << 20)


def test_clients_that_hang_up(server: Target) -> None:
    for _ in range(30):
        with server.connect() as connection:
            connection.sendall(server.post(b'{"input": "x"}'))
    for _ in range(100):
        if (load := server.ask("/load").json()["server_load"]) == 0:
            break
        time.sleep(0.05)
    assert load == 0
