"""Slowloris: clients that say a little, or nothing, or do not listen."""

from __future__ import annotations

import time

from .conftest import Target, read_all, status_of


def test_half_a_header(server: Target) -> None:
    held = [server.connect() for _ in range(30)]
    for connection in held:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: localhost\r\n")
    assert server.ask("/classify", {"input": "meanwhile"}).status_code == 200
    for connection in held:
        assert closes(connection)


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
            assert status_of(read_all(connection)) == 408


def test_nothing_after_connecting_and_half_open(server: Target) -> None:
    held = [server.connect() for _ in range(30)]
    for connection in held:
        assert closes(connection)


def test_an_answer_that_nobody_reads(server: Target) -> None:
    """Answers pile up until the connection is broken; the server goes on."""
    request = server.post(b'{"input": "x"}').replace(b"Connection: close\r\n", b"")
    with server.connect() as connection:
        connection.settimeout(3)
        try:
            for _ in range(200):
                connection.sendall(request)
        except (ConnectionError, TimeoutError):
            pass
        assert server.ask("/classify", {"input": "meanwhile"}).status_code == 200


def test_clients_that_hang_up(server: Target) -> None:
    for _ in range(30):
        with server.connect() as connection:
            connection.sendall(server.post(b'{"input": "x"}'))
    assert server.ask("/load").json()["server_load"] < 64


def closes(connection: object) -> bool:
    with connection:  # type: ignore[attr-defined]
        try:
            return read_all(connection) is not None  # type: ignore[arg-type]
        except ConnectionError:
            return True
