"""Too much: of headers, of a body (declared, chunked, lied about), of connections, of nesting."""

from __future__ import annotations

import json
import socket
import time

import pytest

from .conftest import KEY, MAX_BODY, Target, read_all


@pytest.mark.parametrize(
    "lines", [["X-A: " + "a" * 20000], ["X-A: a"] * 150, [f"X-{n}: {'b' * 200}" for n in range(90)]]
)
def test_headers(server: Target, lines: list[str]) -> None:
    assert server.answered(server.post(b'{"input": "x"}', *lines)) == 431


def test_a_header_without_end(server: Target) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        sent = 0
        try:
            for _ in range(1000):
                connection.sendall(b"a" * 4096)
                sent += 4096
        except ConnectionError:
            pass
    assert sent < 1000 * 4096


def test_a_path_without_end(server: Target) -> None:
    data = server.get("/" + "a" * 30000, "Host: localhost", f"Authorization: Bearer {KEY}")
    assert server.answered(data) == 431


def test_a_body_that_is_declared(server: Target) -> None:
    assert server.ask("/classify", b"[" * (MAX_BODY + 1)).status_code == 413


@pytest.mark.parametrize("length", ["999999999999999999999999", "-1", "1e3", "0x10", "10, 20"])
def test_a_length_that_cannot_be(server: Target, length: str) -> None:
    assert server.refused(server.post(b"", f"Content-Length: {length}")) == 400


def test_a_chunked_body_without_end(server: Target) -> None:
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    with server.connect() as connection:
        connection.sendall(server.post(b"", "Transfer-Encoding: chunked"))
        for _ in range(8):
            connection.sendall(chunk)
        assert b" 413 " in connection.recv(65536)
        with pytest.raises(ConnectionError):  # what goes on coming is read for a while, and then no more
            for _ in range(2000):
                connection.sendall(chunk)
                time.sleep(0.005)


def test_chunks_of_a_byte_and_of_a_lie(server: Target) -> None:
    one = b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"input": "x"}') + b"0\r\n\r\n"
    assert server.answered(server.post(one, "Transfer-Encoding: chunked")) == 200
    assert server.refused(server.post(b"zz\r\nabc", "Transfer-Encoding: chunked")) == 400


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 4"),
        ("Content-Length: 4", "Content-Length: 80"),
        ("Content-Length: 80", "Transfer-Encoding : chunked"),
        ("Content-Length: 80", "X-A: a\nTransfer-Encoding: chunked"),
        ("Content-Length: 80", "X-A: a\r Transfer-Encoding: chunked"),
        ("Content-Length: 80", "X-A:", "\tTransfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        ("Transfer-Encoding: xchunked",),
    ],
)
def test_smuggling(server: Target, headers: tuple[str, ...]) -> None:
    """A request whose length is in doubt is the last of its connection: nothing behind it is read as another one."""
    hidden = server.get("/metrics", "Host: localhost", f"Authorization: Bearer {KEY}")
    assert server.refused(server.post(b"0\r\n\r\n" + hidden, *headers)) in (400, 501)


@pytest.mark.parametrize("end", [b"0\r\n\n", b"0\n\n", b"0\r\nX-A: a\n\n", b"0;a\n\r\n\r\n", b"0\r\n X-A: a\r\n\r\n"])
def test_smuggling_behind_chunks(server: Target, end: bytes) -> None:
    body = b'e\r\n{"input": "x"}\r\n' + end
    assert server.refused(server.post(body, "Transfer-Encoding: chunked")) == 400


def test_connections(server: Target) -> None:
    """More than there may be: those beyond are refused at once, and the others are let go when they say nothing."""
    held: list[socket.socket] = []
    try:
        held = [server.connect() for _ in range(80)]
        answers = []
        for connection in held:
            try:
                answers.append(read_all(connection))
            except ConnectionError:
                answers.append(b"")
    finally:
        for connection in held:
            connection.close()
    assert sum(b" 503 " in answer for answer in answers) >= 80 - 64


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"input":[', b'["\\"[",['])
def test_nesting(server: Target, opening: bytes) -> None:
    body = opening * (60000 // len(opening))
    answer = server.ask("/classify", body)
    assert answer.status_code == 400
    assert "deeper" in answer.json()["error"]["message"]


def test_brackets_in_a_text_are_no_nesting(server: Target) -> None:
    body = json.dumps({"input": '["\\' * 200, "truncate_prompt_tokens": -1}).encode()
    assert server.ask("/classify", body).status_code == 200


def test_a_compressed_body(server: Target) -> None:
    assert server.ask("/classify", b"\x1f\x8b" + b"\0" * 100, {"Content-Encoding": "gzip"}).status_code == 415
