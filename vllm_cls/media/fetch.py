"""Fetching a URL: from allowed hosts and public addresses alone, and no more than is allowed of it.

The URL is taken apart once, here; host, port and path go to the connection as they were checked, so that no second
parser can read another host. The address is found, checked and connected to in one step, and redirects begin anew.
"""

from __future__ import annotations

import re
import ssl
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

import httpcore
import httpx

from ..errors import PromptError, shown

if TYPE_CHECKING:
    from .policy import Allowance

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 3
_HEADERS = {"Accept": "image/*, video/*", "Accept-Encoding": "identity", "User-Agent": "vllm-cls"}


class WebAddress(NamedTuple):
    """Where a URL leads."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        return self.host if self.port == _PORTS[self.scheme] else f"{self.host}:{self.port}"


def fetch(url: str, allowance: Allowance) -> bytes:
    """What a URL of http or https holds.

    Raises:
        PromptError: it is not allowed, too large, too slow, or not there.
    """
    for _ in range(_MAX_REDIRECTS + 1):
        address = address_of(url, allowance.policy.allowed_media_domains)
        try:
            data, location = get(address, allowance)
        except httpcore.TimeoutException as error:
            allowance.seconds_left()  # says that all time is over, if it is
            raise PromptError(f"{address.host!r} did not answer in time.") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            raise PromptError(f"{address.host!r} could not be asked: {_reason(error)}.") from error
        if location is None:
            return data
        following = urljoin(url, location)
        if address.scheme == "https" and not following.lower().startswith("https:"):
            raise PromptError(f"{address.host!r} redirects from https to less; such redirects are not followed.")
        url = following
    raise PromptError(f"more than {_MAX_REDIRECTS} redirects.")


def address_of(url: str, allowed: tuple[str, ...]) -> WebAddress:
    """Take a URL apart.

    Raises:
        PromptError: it is odd in a way that another parser could read differently, or its host is not an allowed one.
    """
    if _FORBIDDEN.search(url):
        raise PromptError(
            f"the URL {shown(url)} has a blank, a backslash or a control character; write it as %20 and so on."
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise PromptError(f"{shown(url)} is not a URL: {error}.") from error
    if parts.scheme not in _PORTS:
        raise PromptError(f"a URL of {parts.scheme!r} is not fetched; only http and https are.")
    if "@" in parts.netloc:
        raise PromptError("a URL with a user name or a password is not fetched.")
    host = parts.netloc.lower()
    host = host[: -len(f":{port}")] if port is not None and host.endswith(f":{port}") else host
    if not _HOST.fullmatch(host):
        raise PromptError(f"the host {shown(host)} is not one; names beyond ASCII are written as xn--….")
    address = WebAddress(parts.scheme, host, port or _PORTS[parts.scheme], _path(parts.path, parts.query))
    if not _is_allowed(address, allowed):
        raise PromptError(
            f"the host {address.host_header!r} is not allowed; nothing is fetched but from those of --allowed-media-domains."
        )
    return address


def _path(path: str, query: str) -> str:
    return quote(path or "/", safe="/%:@!$&'()*+,;=~-._") + (
        f"?{quote(query, safe='/%:@!$&()*+,;=~-._?')}" if query else ""
    )


def _is_allowed(address: WebAddress, allowed: tuple[str, ...]) -> bool:
    names = {each.lower() for each in allowed}
    usual = address.port == _PORTS[address.scheme]
    return f"{address.host}:{address.port}" in names or (usual and address.host in names)


def get(address: WebAddress, allowance: Allowance) -> tuple[bytes, str | None]:
    """The body, or where a redirect leads."""
    url = httpcore.URL(
        scheme=address.scheme, host=address.host.strip("[]"), port=address.port, target=address.path.encode("ascii")
    )
    left = allowance.seconds_left()
    timeouts = {"connect": left, "read": left, "write": left, "pool": left}
    headers: list[tuple[bytes | str, bytes | str]] = [("Host", address.host_header), *_HEADERS.items()]
    with (
        httpcore.ConnectionPool(ssl_context=_ssl_context(), network_backend=_CheckedBackend(allowance)) as pool,
        pool.stream("GET", url, headers=headers, extensions={"timeout": timeouts}) as response,
    ):
        found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        if response.status in _REDIRECTS and "location" in found:
            return b"", found["location"]
        if response.status != 200:
            raise PromptError(f"{address.host!r} answered {response.status}.")
        if found.get("content-encoding", "identity").lower() != "identity":
            raise PromptError(f"{address.host!r} sent it compressed, which was not asked for.")
        return _body(response, found.get("content-length", ""), allowance), None


def _body(response: httpcore.Response, length: str, allowance: Allowance) -> bytes:
    limit = allowance.policy.max_bytes
    refusal = PromptError(f"more than the {limit:,} bytes allowed.")
    if length.isdecimal() and (len(length) > 15 or int(length) > limit):
        raise refusal
    data = bytearray()
    for chunk in response.iter_stream():
        data += chunk
        if len(data) > limit:
            raise refusal
    return bytes(data)


@cache
def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _reason(error: BaseException) -> str:
    return str(error).rstrip(".") or type(error).__name__


class _CheckedBackend(httpcore.NetworkBackend):
    """Connects to allowed addresses alone, and gives up when the prompt's time is over."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._inner = httpcore.SyncBackend()

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
                    socket_options: Any = None) -> httpcore.NetworkStream:  # fmt: skip
        policy = self._allowance.policy
        addresses = policy.resolve(host, port, self._allowance.seconds_left())
        if not all(map(policy.may_connect, addresses)):
            raise _not_public(host)
        failed: Exception | None = None
        for address in addresses:
            try:
                stream = self._inner.connect_tcp(
                    address, port, self._allowance.seconds_left(), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
                continue
            peer = stream.get_extra_info("server_addr")
            if not peer or not policy.may_connect(str(peer[0])):
                stream.close()
                raise _not_public(host)
            return _TimedStream(stream, self._allowance)
        raise failed or httpcore.ConnectError("no address")


def _not_public(host: str) -> PromptError:
    return PromptError(f"the host {host!r} has an address that is not of the public internet; it is not connected to.")


class _TimedStream(httpcore.NetworkStream):
    """A connection each of whose steps has what is left of the prompt's time: a slow peer gets no more by being slow."""

    def __init__(self, inner: httpcore.NetworkStream, allowance: Allowance) -> None:
        self._inner = inner
        self._allowance = allowance

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._allowance.seconds_left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._allowance.seconds_left())

    def close(self) -> None:
        self._inner.close()

    def start_tls(self, ssl_context: ssl.SSLContext, server_hostname: str | None = None,
                  timeout: float | None = None) -> httpcore.NetworkStream:  # fmt: skip
        return _TimedStream(
            self._inner.start_tls(ssl_context, server_hostname, self._allowance.seconds_left()), self._allowance
        )

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
