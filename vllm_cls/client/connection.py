"""The part that both clients share: address, headers, retries, errors."""

from __future__ import annotations

import abc
import json
import os
import ssl
from collections.abc import Mapping
from typing import Any, TypeVar

import httpx

from ..errors import ConfigError
from .calls import ClientRequest
from .errors import RejectedError, ServerError, UnreachableError
from .retrying import RETRIED, Attempts, retry_after_seconds

T = TypeVar("T")

_REJECTED = frozenset({400, 413, 415, 422})


class ClientConnection(abc.ABC):
    """The address, timeouts and retries of a client; base class of both clients, which differ in how they wait.

    Args:
        base_url: such as http://127.0.0.1:8000; a /v1 at its end, as OpenAI's clients want it, is left out.
        api_key: one that the server knows; None takes VCLS_API_KEY of the environment, where there is one.
        timeout: seconds for a call, all its tries included.
        max_retries: how often a call is tried again when the server is overloaded or not ready (429, 503), or the
            connection fails. The header Retry-After is honoured; a call that has no time left for it ends at once.
        headers: to send with every request.
        verify: the server's certificate: True takes the authorities that this machine trusts (or the file of SSL_CERT_FILE), a path
            those of a PEM file, an `SSLContext` may show a certificate of one's own, and False checks nothing.
        transport: of httpx, in place of the network; for tests and for apps in the same process.

    Raises:
        ConfigError: an option is wrong.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_retries: int = 5,
        headers: Mapping[str, str] | None = None,
        verify: bool | str | os.PathLike[str] | ssl.SSLContext = True,
        transport: Any = None,
    ) -> None:
        if not timeout > 0:
            raise ConfigError(f"timeout={timeout!r} must be a number of seconds above 0.")
        if max_retries < 0:
            raise ConfigError(f"max_retries={max_retries!r} must be 0 or more.")
        self.base_url = _checked_url(base_url)
        self.timeout, self.max_retries = timeout, max_retries
        self._http = self._opened(transport=transport, verify=_trusted(verify), headers=_headers(api_key, headers))

    @abc.abstractmethod
    def _opened(self, **options: Any) -> Any:
        """httpx's client."""

    def attempts(self) -> Attempts:
        return Attempts(self.max_retries, self.timeout)

    def request(self, call: ClientRequest[Any], attempts: Attempts) -> dict[str, Any]:
        """The arguments of httpx's `request` for the next try."""
        content = None if call.body is None else _json(call.body)
        left = attempts.left
        return {
            "method": call.method,
            "url": self.base_url + call.path,
            "content": content,
            "headers": {"Content-Type": "application/json"} if content is not None else None,
            "timeout": httpx.Timeout(left, connect=min(left, 10.0)),
        }

    def after_failure(self, error: httpx.HTTPError, attempts: Attempts) -> float:
        """Seconds until the next try; the error if there is none."""
        broken = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError | httpx.ConnectTimeout)
        pause = attempts.pause() if broken else None
        if pause is not None:
            return pause
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        hint = "it took too long" if isinstance(error, httpx.TimeoutException) else "is it running there?"
        raise UnreachableError(f"the server at {self.base_url} gave no answer ({reason}); {hint}") from error

    def after_answer(self, call: ClientRequest[Any], response: httpx.Response, attempts: Attempts) -> float | None:
        """Seconds until the next try, or None where this answer is the result; the error if it is one."""
        if response.status_code in call.accepted:
            return None
        error = _error(response)
        pause = attempts.pause(error.retry_after) if response.status_code in RETRIED else None
        if pause is None:
            raise error
        return pause


def result(call: ClientRequest[T], response: httpx.Response) -> T:
    """The result of a successful response.

    Raises:
        ServerError: it is not a response of this API.
    """
    try:
        return call.read(response)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"the answer to {call.method} {call.path} is not one of vLLM's API ({error})"
        raise ServerError(f"{message}; is that the right server?", response.status_code) from error


def _checked_url(url: str) -> str:
    try:
        parts = httpx.URL(url)
        valid = parts.scheme in ("http", "https") and parts.host and 0 < (parts.port or 80) < 65536
    except httpx.InvalidURL:
        valid = False
    if not valid:
        raise ConfigError(f"{url!r} is no address of a server; write it as http://127.0.0.1:8000.")
    return url.rstrip("/").removesuffix("/v1")


def _trusted(verify: bool | str | os.PathLike[str] | ssl.SSLContext) -> bool | ssl.SSLContext:
    if isinstance(verify, bool | ssl.SSLContext):
        return verify
    try:
        return ssl.create_default_context(cafile=os.fspath(verify))
    except OSError as error:  # an SSLError is one
        why = "it holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror or error
        raise ConfigError(f"verify={os.fspath(verify)!r}: {why}.") from error


def _headers(api_key: str | None, more: Mapping[str, str] | None) -> dict[str, str]:
    key = os.environ.get("VCLS_API_KEY") if api_key is None else api_key
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError("api_key has characters that no key can have; is there a line break at its end?")
    return ({"Authorization": f"Bearer {key}"} if key else {}) | dict(more or {})


def _json(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which the server refuses in its own words
        return json.dumps(body, allow_nan=False).encode()


def _error(response: httpx.Response) -> ServerError:
    """The error of an error response, with the server's own message where there is one."""
    try:
        found = response.json()["error"]
        found = found if isinstance(found, Mapping) else {"message": str(found)}
    except (ValueError, TypeError, KeyError):
        found = {}
    status = response.status_code
    message = found.get("message") or f"the server answered {status} {response.reason_phrase} to {response.url}"
    kind = RejectedError if status in _REJECTED else ServerError
    return kind(
        str(message),
        status,
        type=found.get("type"),
        param=found.get("param"),
        code=found.get("code"),
        retry_after=retry_after_seconds(response.headers.get("Retry-After")),
    )
