"""Strict HTTP/1.1 framing: h11 that refuses whatever another parser could read differently (RFC 9112)."""

from __future__ import annotations

import re
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer

_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_FOLDED = re.compile(rb"\n[ \t]")
_AUTHORITY = rb"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@]+)(?::[0-9]*)?"
_HOST = re.compile(rb"(?:%s)?" % _AUTHORITY)
_ABSOLUTE = re.compile(rb"(?i:https?)://(%s)(/[^?]*)?(\?.*)?" % _AUTHORITY)


class LineBuffer(ReceiveBuffer):
    """The receive buffer: lines must end in CR LF, and folded headers are refused (RFC 9112, 2.2 and 5.2)."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a head or of a trailer, once all are there; raises LocalProtocolError, as h11's readers do."""
        seen = self._multiple_lines_search
        end = -2 if self._data.startswith(b"\r\n") else self._data.find(b"\r\n\r\n", seen)
        until = len(self._data) if end == -1 else end + 2
        if any(each.search(self._data, max(0, seen - 1), until) for each in (_BARE, _FOLDED)):
            raise h11.LocalProtocolError("a line that does not end in CR LF, or goes on in the next one")
        if end == -1:
            self._multiple_lines_search = max(0, len(self._data) - 3)
            return None
        lines = self._extract(end + 4)[:-4]
        return lines.split(b"\r\n") if lines else []

    def maybe_extract_next_line(self) -> bytearray | None:
        """The line before a chunk, with its end."""
        line = super().maybe_extract_next_line()
        if line is not None and _BARE.search(line):
            raise h11.LocalProtocolError("a line before a chunk that does not end in CR LF")
        return line


class StrictConnection(h11.Connection):
    """An h11 server connection whose requests are all in origin form: `/path`, with the host in the Host header."""

    def __init__(self, max_incomplete_event_size: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size)
        self._receive_buffer = LineBuffer()

    @property
    def has_more(self) -> bool:
        """Whether there are bytes that nobody has read yet."""
        return bool(self._receive_buffer)

    def next_event(self) -> Any:
        """As h11's; RemoteProtocolError, upon which a server answers and closes, for a request that is in doubt, too."""
        event = super().next_event()
        if not isinstance(event, h11.Request):
            return event
        names = [name for name, _ in event.headers]
        if b"transfer-encoding" in names and (b"content-length" in names or event.http_version < b"1.1"):
            raise h11.RemoteProtocolError("a body of two lengths")  # 6.1: smuggling, or a very old proxy
        return _in_origin_form(event)


def _in_origin_form(request: h11.Request) -> h11.Request:
    """The same request for a path: 3.2.

    Raises:
        RemoteProtocolError: its target or its host cannot be.
    """
    target, host = request.target, dict(request.headers).get(b"host", b"")
    if request.method == b"CONNECT":
        raise h11.RemoteProtocolError("this is no proxy", error_status_hint=501)
    if absolute := _ABSOLUTE.fullmatch(target):
        host, path, query = absolute.groups(b"")
        target = (path or b"/") + query
    elif target == b"*" and request.method == b"OPTIONS":
        target = b"/"
    if not target.startswith(b"/") or not _HOST.fullmatch(host):
        raise h11.RemoteProtocolError("no target, or no host")
    if target == request.target:
        return request
    headers = [(name, host if name == b"host" else value) for name, value in request.headers]
    return h11.Request(method=request.method, target=target, headers=headers, http_version=request.http_version)
