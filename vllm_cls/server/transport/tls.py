"""TLS of a server: its certificate, and the handshake, within the limits that every connection has."""

from __future__ import annotations

import asyncio
import functools
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .connection import ConnectionLimits, ServerConnection


def server_context(
    certfile: Path | None, keyfile: Path | None, ca_certs: Path | None = None, cert_reqs: int = ssl.CERT_NONE
) -> ssl.SSLContext | None:
    """What a server needs for TLS 1.2 and 1.3; None where no option asks for it.

    Args:
        certfile: PEM of the certificate, and of those between it and a root.
        keyfile: PEM of its private key, without a passphrase.
        ca_certs: PEM of the authorities whose certificates clients may show.
        cert_reqs: 0 asks clients for none, 1 takes one, 2 requires one.

    Raises:
        ConfigError: a file is missing or cannot be read, or they do not belong together.
    """
    if certfile is None or keyfile is None:
        if certfile or keyfile or ca_certs or cert_reqs:
            raise ConfigError("TLS needs a certificate and its key: give both --ssl-certfile and --ssl-keyfile.")
        return None
    if cert_reqs and ca_certs is None:
        raise ConfigError(
            f"--ssl-cert-reqs {cert_reqs} asks clients for certificates: name who issues them, --ssl-ca-certs."
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certfile, keyfile, _no_passphrase)
    except ssl.SSLError as error:
        raise ConfigError(_unfit(error, certfile, keyfile)) from error
    except OSError as error:
        raise ConfigError(f"{certfile} or {keyfile} cannot be read: {error.strerror or error}.") from error
    if ca_certs is not None:
        try:
            context.load_verify_locations(ca_certs)
        except OSError as error:  # an SSLError is one
            why = "it holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror or error
            raise ConfigError(f"--ssl-ca-certs {ca_certs}: {why}.") from error
    context.verify_mode = ssl.VerifyMode(cert_reqs)
    return context


def _no_passphrase() -> str:
    raise ConfigError("--ssl-keyfile is encrypted; decrypt it: openssl pkey -in KEY -out PLAIN.")


def _unfit(error: ssl.SSLError, certfile: Path, keyfile: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"--ssl-keyfile {keyfile} is not the key of --ssl-certfile {certfile}."
    return f"--ssl-certfile {certfile} and --ssl-keyfile {keyfile} are no certificate with its key, in PEM ({error.reason})."


class Handshake(asyncio.Protocol):
    """A connection until its TLS handshake is done; then another protocol goes on with it.

    asyncio's own server does not count these, and waits a minute for each: a client that opens many and sends nothing
    would hold them all.

    Args:
        make: makes the protocol that goes on.
        context: from `server_context`.
        limits: the handshake is one of `max_connections`, and has `header_timeout`.
    """

    def __init__(self, make: Callable[[], ServerConnection], context: ssl.SSLContext, limits: ConnectionLimits) -> None:
        self._next = make()
        self._context, self._limits = context, limits
        self._early: list[bytes] = []
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        open_ones: set[Any] = self._next.connections  # uvicorn's: with `shutdown` it closes them
        if len(open_ones) >= self._limits.max_connections:
            transport.abort()
            return
        open_ones.add(self)
        self._task = asyncio.get_running_loop().create_task(self._shake_hands())

    def data_received(self, data: bytes) -> None:
        """What came in the last message of the handshake."""
        self._early.append(data)

    def shutdown(self) -> None:
        """The server stops."""
        self._transport.abort()

    async def _shake_hands(self) -> None:
        limits: dict[str, Any] = {"ssl_handshake_timeout": self._limits.header_timeout}
        if sys.version_info >= (3, 11):
            limits["ssl_shutdown_timeout"] = self._limits.write_timeout
        try:
            secured = await asyncio.get_running_loop().start_tls(
                self._transport, self, self._context, server_side=True, **limits
            )
        except OSError:  # of the network, of TLS, or too late
            self._transport.abort()
            return
        finally:
            self._next.connections.discard(self)  # for `_next`, which adds itself
        if secured is None or secured.is_closing():
            return
        secured.set_protocol(self._next)
        self._next.connection_made(secured)
        for data in self._early:
            self._next.data_received(data)


def secured(connection: type[ServerConnection], context: ssl.SSLContext) -> Callable[..., Handshake]:
    """What uvicorn makes for each connection, with the arguments of `connection`, in its place."""

    def make(**options: Any) -> Handshake:
        return Handshake(functools.partial(connection, **options), context, connection.limits)

    return make
