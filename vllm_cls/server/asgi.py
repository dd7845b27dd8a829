"""Helpers for ASGI middlewares: headers, the routed path, the matched route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

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
