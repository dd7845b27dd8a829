"""What a server takes for one request: nothing that another parser on the way could read as two, or as another one."""

from __future__ import annotations

from typing import Any

import h11
import pytest

from vllm_cls.server.transport.framing import StrictConnection

POST = b"POST /size HTTP/1.1\r\nHost: h\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def events_of(data: bytes, at_once: int | None = None) -> list[Any]:
    """What is read of some bytes, which come at once or so many at a time."""
    connection, events = StrictConnection(16 << 10), []
    for start in range(0, len(data), at_once or len(data)):
        connection.receive_data(data[start : start + (at_once or len(data))])
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            events.append(event)
    return events


DOUBTFUL = {
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "two lengths in a line": POST + b"Content-Length: 1, 2\r\n\r\nab",
    "a length and chunks": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "a length with a sign": POST + b"Content-Length: +1\r\n\r\na",
    "a length in hex": POST + b"Content-Length: 0x1\r\n\r\na",
    "no length": POST + b"Content-Length:\r\n\r\na",
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding before chunks": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": POST + b"Content-Length : 1\r\n\r\na",
    "a folded line": POST + b"X-A: a\r\n b\r\n\r\n",
    "a folded line by a tab": POST + b"X-A: a\r\n\tContent-Length: 5\r\n\r\n",
    "a first line that goes on": b"GET / HTTP/1.1\r\n Host: h\r\nHost: h\r\n\r\n",
    "a bare LF": POST + b"X-A: a\nContent-Length: 5\r\n\r\n",
    "a bare LF at the end": POST + b"\n",
    "bare LFs alone": b"GET / HTTP/1.1\nHost: h\n\n",
    "a bare CR": POST + b"X-A: a\rContent-Length: 5\r\n\r\n",
    "a bare CR before CR LF": POST + b"X-A: a\r\r\n\r\n",
    "a NUL": POST + b"X-A: a\0b\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": POST + b"Host: g\r\n\r\n",
    "a host with a path": b"GET / HTTP/1.1\r\nHost: h/health?\r\n\r\n",
    "a host with a user": b"GET / HTTP/1.1\r\nHost: a@h\r\n\r\n",
    "a chunk's size with a sign": CHUNKED + b"+1\r\na\r\n0\r\n\r\n",
    "a chunk's size in Python's hex": CHUNKED + b"0x1\r\na\r\n0\r\n\r\n",
    "a chunk's size with an underscore": CHUNKED + b"1_0\r\na\r\n0\r\n\r\n",
    "a space before a chunk's size": CHUNKED + b" 1\r\na\r\n0\r\n\r\n",
    "a chunk that is longer": CHUNKED + b"1\r\nabc\r\n0\r\n\r\n",
    "a chunk that ends otherwise": CHUNKED + b"1\r\naXX0\r\n\r\n",
    "a bare LF behind a chunk's size": CHUNKED + b"1\na\r\n0\r\n\r\n",
    "a bare LF in a chunk's extension": CHUNKED + b"1;a\n\r\na\r\n0\r\n\r\n",
    "a bare CR in a chunk's extension": CHUNKED + b"1;a\rb\r\na\r\n0\r\n\r\n",
    "a bare LF behind the last chunk": CHUNKED + b"0\r\n\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
    "a bare LF in a trailer": CHUNKED + b"0\r\nX-A: a\n\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
    "a folded trailer": CHUNKED + b"0\r\nX-A: a\r\n b\r\n\r\n",
    "a target without a slash": b"GET health HTTP/1.1\r\nHost: h\r\n\r\n",
    "a star for no OPTIONS": b"GET * HTTP/1.1\r\nHost: h\r\n\r\n",
    "another scheme": b"GET ftp://h/health HTTP/1.1\r\nHost: h\r\n\r\n",
    "a user": b"GET http://a@h/health HTTP/1.1\r\nHost: h\r\n\r\n",
    "a scheme alone": b"GET http:///health HTTP/1.1\r\nHost: h\r\n\r\n",
    "a port that is none": b"GET http://h:x/health HTTP/1.1\r\nHost: h\r\n\r\n",
    "a name and a port": b"GET h:80 HTTP/1.1\r\nHost: h\r\n\r\n",
    "a proxy's method": b"CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01",
}  # fmt: skip


@pytest.mark.parametrize("at_once", [None, 1, 7])
@pytest.mark.parametrize("data", DOUBTFUL.values(), ids=DOUBTFUL)
def test_what_is_in_doubt_is_refused(data: bytes, at_once: int | None) -> None:
    with pytest.raises(h11.RemoteProtocolError):
        events_of(data, at_once)


@pytest.mark.parametrize("at_once", [None, 1, 7])
@pytest.mark.parametrize(
    ("data", "body"),
    [
        (POST + b"Content-Length: 2\r\n\r\nab", b"ab"),
        (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\na\n", b"a\n"),
        (POST + b"X-Empty:\r\nX-Bytes: \xe9\t\xff \r\n\r\n", b""),
        (CHUNKED + b"1\r\na\r\n2;name=value\r\n\n\r\r\n0\r\n\r\n", b"a\n\r"),
        (CHUNKED + b"a \r\n0123456789\r\n0\r\nX-Sum: 3\r\nX-B:\r\n\r\n", b"0123456789"),
        (b"POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\na", b"a"),
        (b"GET / HTTP/1.1\r\nhost:\r\n\r\n", b""),
        (b"GET / HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", b""),
    ],
)
def test_what_is_whole_comes_whole(data: bytes, body: bytes, at_once: int | None) -> None:
    first, *parts, last = events_of(data, at_once)
    assert isinstance(first, h11.Request) and isinstance(last, h11.EndOfMessage)
    assert b"".join(each.data for each in parts) == body


@pytest.mark.parametrize(
    ("line", "target", "host"),
    [
        (b"GET /a?b=/c HTTP/1.1", b"/a?b=/c", b"h:1"),
        (b"GET //a HTTP/1.1", b"//a", b"h:1"),
        (b"GET http://a:80/b?c=d:e/@ HTTP/1.1", b"/b?c=d:e/@", b"a:80"),
        (b"GET HTTPS://a HTTP/1.1", b"/", b"a"),
        (b"GET http://[::1]:5?q HTTP/1.1", b"/?q", b"[::1]:5"),
        (b"OPTIONS * HTTP/1.1", b"/", b"h:1"),
    ],
)
def test_forms_of_a_target(line: bytes, target: bytes, host: bytes) -> None:
    """RFC 9112, 3.2: the host of the target is the one that counts."""
    request, _ = events_of(line + b"\r\nX-A: 1\r\nHost: h:1\r\n\r\n")
    assert (request.target, dict(request.headers)) == (target, {b"x-a": b"1", b"host": host})


def test_a_head_that_does_not_end() -> None:
    with pytest.raises(h11.RemoteProtocolError, match="too long") as raised:
        events_of(POST + b"X-A: " + b"a" * 20_000, 1)
    assert raised.value.error_status_hint == 431
