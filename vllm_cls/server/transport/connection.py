"""uvicorn's HTTP/1.1 connection with a timeout for everything that the peer can delay."""

from __future__ import annotations

import asyncio
import http
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import error_response
from .framing import StrictConnection

_HEADER_BYTES = 64 << 10  # where the server does not say


@dataclass(frozen=True)
class ConnectionLimits:
    """Timeouts of a connection, and the number of connections.

    Args:
        header_timeout: seconds until a request's headers must be whole, counted from their first byte or from connecting.
        write_timeout: seconds in which the peer must take what is written to it.
        max_connections: at a time; one more is answered 503 at once.
    """

    header_timeout: float
    write_timeout: float
    max_connections: int


class RequestFlowControl(FlowControl):
    """Flow control of one connection: it reads on only when the requests that it has read are answered.

    uvicorn resumes reading whenever an app asks whether its client is still there, as ours does for every request: what a
    client sends behind a request that waits would pile up.
    """

    def __init__(self, transport: asyncio.Transport, conn: StrictConnection) -> None:
        super().__init__(transport)
        self._conn = conn
        self._next_has_come = False

    def pause_reading(self) -> None:
        # Else a body comes faster than it is read.
        self._next_has_come = self._conn.their_state is not h11.SEND_BODY and self._conn.has_more
        super().pause_reading()

    def resume_reading(self) -> None:
        if not self._next_has_come:
            super().resume_reading()

    def answered(self) -> None:
        self._next_has_come = False


class ServerConnection(H11Protocol):
    """One connection.

    uvicorn times idle connections only between two requests: a peer that sends half a header, keeps sending a body that
    was refused, or does not read its answer would hold one for ever.
    """

    limits: ClassVar[ConnectionLimits]
    conn: StrictConnection
    flow: RequestFlowControl
    _awaited: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = StrictConnection(self.config.h11_max_incomplete_event_size or _HEADER_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = RequestFlowControl(transport, self.conn)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(503, "The server has too many connections (--max-connections); try again.")
            return
        self._await_request()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self.conn.their_state in (h11.MUST_CLOSE, h11.CLOSED):
            return  # what comes behind a request that was said to be the last is none (RFC 9112, 9.6)
        super().data_received(data)
        if self._answering():
            self._stop_awaiting()
        elif self._awaited is None and self.timeout_keep_alive_task is None:
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_awaiting()
        self.resume_writing()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self.flow.answered()
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # an answer that did not wait for the body, which still comes
            self._unset_keepalive_if_required()
            self._await_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self._unread or self.loop.call_later(self.limits.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later()

    def send_400_response(self, msg: str) -> None:
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        self._refuse(status if status in (414, 431, 501) else 400, "This is no valid HTTP request.")

    def _answering(self) -> bool:
        """Whether a whole header has come whose answer is not complete."""
        return not getattr(self.cycle, "response_complete", True)  # None before the first request

    def _await_request(self) -> None:
        if self._awaited is None and not self._answering():
            self._awaited = self.loop.call_later(self.limits.header_timeout, self._give_up)

    def _stop_awaiting(self) -> None:
        if self._awaited is not None:
            self._awaited.cancel()
            self._awaited = None

    def _give_up(self) -> None:
        self._awaited = None
        if not self._answering():
            self.transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        """Answer outside of any request, and close."""
        if self.conn.our_state is h11.SEND_BODY:  # of half an answer a second one would be read as a part
            self.transport.abort()
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else this request has its answer
            body = bytes(error_response(status, message).body)
            head = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        """A closed transport waits until its peer has read what is left: not for ever."""
        self.loop.call_later(self.limits.write_timeout, self.transport.abort)


def connection_class(limits: ConnectionLimits) -> type[ServerConnection]:
    """A subclass of `ServerConnection` with these limits; uvicorn makes an instance for each connection."""
    return type("Connection", (ServerConnection,), {"limits": limits})
