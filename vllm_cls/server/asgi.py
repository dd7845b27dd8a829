"""Helpers for ASGI: headers, the routed path, the matched route, an app that is asked without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


def header(scope: Scope, name: str) -> str | None:
    """The value of the header `name` (lower case), or None where there is none or more than one."""
    values = [value for key, value in scope["headers"] if key == name.encode()]
    return values[0].decode("latin-1").strip() if len(values) == 1 else None


def has_body(scope: Scope) -> bool:
    """Whether the headers announce a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")
        for name, value in scope["headers"]
    )


def routed_path(scope: Scope) -> str:
    """The path that Starlette matches routes against: decoded, without the prefix the app is mounted under.

    Neither the raw path nor anything made of the Host header, which a client writes as it likes.
    """
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(prefix) :] if prefix and path.startswith(prefix + "/") else path


def route_template(scope: Scope) -> str | None:
    """The path template of the matched route, such as `/items/{id}`; None before routing and without a match."""
    return getattr(scope.get("route"), "path", None)


class Answer(NamedTuple):
    """What an app answers.

    Args:
        headers: by their names in lower case.
    """

    status: int
    headers: dict[str, str]
    body: bytes


def receive_whole(body: bytes, gone: asyncio.Event) -> Receive:
    """What gives an app a whole body, and, once that is set, says that the client has gone."""
    unread = True

    async def receive() -> Message:
        nonlocal unread
        if unread:
            unread = False
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


async def ask(app: App, scope: Scope, body: bytes) -> Answer:
    """The whole answer of an app to a request."""
    start: dict[str, Any] = {}
    parts: list[bytes] = []
    complete = asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                complete.set()

    try:
        await app(scope, receive_whole(body, complete), send)
    except Exception:
        if not complete.is_set():  # else an app raises what it has answered
            raise
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
    return Answer(start["status"], headers, b"".join(parts))
