"""Errors of the client."""

from __future__ import annotations

from ..errors import VclsError


class UnreachableError(VclsError):
    """No answer came: no connection, one that broke, or none in time."""


class ServerError(VclsError):
    """The server answered with an error.

    Args:
        message: the server's own, or what stands in its place.
        status: of HTTP.
        type: the kind of error in the server's words, or None; so with `param`, the field that is wrong, and `code`.
        retry_after: seconds after which the server wants to be asked again, or None.
    """

    def __init__(
        self,
        message: str,
        status: int,
        *,
        type: str | None = None,
        param: str | None = None,
        code: int | str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.param, self.code, self.retry_after = status, type, param, code, retry_after


class RejectedError(ServerError, ValueError):
    """The request itself is wrong (400, 413, 415, 422); asking again the same way is of no use."""
