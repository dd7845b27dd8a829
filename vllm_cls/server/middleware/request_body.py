"""A request's body, read whole before anything works on it: bounded in bytes, in time, in depth."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ..asgi import Receive, Scope, header
from ..errors import RequestError

_NO_TEXT = bytes(set(range(256)) - set(b"[]{}"))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_IN_PLACE = 65536
"""Bytes whose depth is found on the event loop; a longer body goes to a thread."""


class ClientDisconnected(Exception):
    """The client disconnected before its request was answered."""


@dataclass
class BufferedBytes:
    """Bytes of bodies that all requests hold together.

    Args:
        limit: how many there may be.
    """

    limit: int
    held: int = 0

    def take(self, number: int) -> None:
        """Raises RequestError where there is no room."""
        if self.held + number > self.limit:
            raise RequestError("The server holds too many request bodies at the moment; try again.", status=503)
        self.held += number

    def release(self, number: int) -> None:
        self.held -= number


async def read_body(scope: Scope, receive: Receive, buffered: BufferedBytes, limit: int, seconds: float) -> bytes:
    """The whole body, counted in `buffered`: the caller gives its length back.

    Args:
        limit: bytes, whether declared in Content-Length or sent in chunks.
        seconds: until it must be whole.

    Raises:
        RequestError: it is too long or too slow.
        ClientDisconnected: before it was whole.
    """
    declared = header(scope, "content-length") or "0"
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise _too_long(limit)
    parts: list[bytes] = []
    taken = 0

    async def read() -> None:
        nonlocal taken
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            part, more = message.get("body", b""), message.get("more_body", False)
            if taken + len(part) > limit:
                raise _too_long(limit)
            buffered.take(len(part))
            taken += len(part)
            parts.append(part)

    try:
        await asyncio.wait_for(read(), seconds)
    except asyncio.TimeoutError:
        buffered.release(taken)
        raise RequestError(f"The request's body took longer than {seconds:g} s (--body-timeout).", status=408) from None
    except BaseException:
        buffered.release(taken)
        raise
    return b"".join(parts)


def _too_long(limit: int) -> RequestError:
    return RequestError(f"The request's body is larger than {limit} bytes (--max-body-bytes).", status=413)


async def check_depth(body: bytes, limit: int) -> None:
    """Refuse JSON that nests deeper than `limit`, before a parser recurses into it."""
    if body.count(b"[") + body.count(b"{") <= limit:
        return
    deep = is_deeper(body, limit) if len(body) <= _IN_PLACE else await asyncio.to_thread(is_deeper, body, limit)
    if deep:
        raise RequestError(f"The request's JSON nests deeper than {limit} levels (--max-json-depth).", "body")


def is_deeper(body: bytes, limit: int) -> bool:
    """Whether brackets outside of strings nest deeper than `limit`; in a few passes at the speed of C, in any encoding.

    Where the brackets do not match, it is whether a parser could come that deep before it notices.
    """
    quoted = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    brackets = b"".join(quoted[::2]).translate(_ONE_KIND, _NO_TEXT)
    for _ in range(limit):
        shorter = brackets.replace(b"[]", b"")  # what nests nothing
        if len(shorter) == len(brackets):
            break
        brackets = shorter
    return b"[]" in brackets or brackets.count(b"[") > limit
