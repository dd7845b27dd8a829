"""HTTPS: the handshake has the limits of a connection, and what is behind it is served as without."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from tests.server.certificates import Certificate, certificate, make  # noqa: F401  # a fixture
from vllm_cls import ConfigError
from vllm_cls.client import Client, UnreachableError
from vllm_cls.server.transport.connection import ConnectionLimits, connection_class
from vllm_cls.server.transport.tls import secured, server_context

from ..bare import app_with, run

LIMITS = ConnectionLimits(header_timeout=5, write_timeout=5, max_connections=100)
REQUEST = b"POST /size HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"


@asynccontextmanager
async def listening(
    context: ssl.SSLContext, limits: ConnectionLimits = LIMITS
) -> AsyncIterator[tuple[int, ServerState]]:
    """The port of an app behind TLS, and the connections that there are."""
    config, state = uvicorn.Config(app_with(), lifespan="off", log_config=None, access_log=False), ServerState()
    connect = secured(connection_class(limits), context)
    server = await asyncio.get_running_loop().create_server(
        lambda: connect(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1], state
    finally:
        server.close()
        for each in list(state.connections):
            each.shutdown()
        await asyncio.sleep(0.01)


def context_of(files: Certificate, **options: Any) -> ssl.SSLContext:
    context = server_context(files.cert, files.key, **options)
    assert context is not None
    return context


def test_requests_on_one_connection(certificate: Certificate) -> None:  # noqa: F811
    """Bodies of many TLS records, and a connection that stays."""

    async def scenario() -> list[tuple[int, Any, str]]:
        trusted = ssl.create_default_context(cafile=certificate.cert)
        async with listening(context_of(certificate)) as (port, _), httpx.AsyncClient(verify=trusted) as client:
            answers = [
                await client.post(
                    f"https://127.0.0.1:{port}/size", content=b" " * n, headers={"content-type": "application/json"}
                )
                for n in (2, 500_000)
            ]
            return [(each.status_code, each.json(), each.http_version) for each in answers]

    assert run(scenario) == [(200, {"size": 2}, "HTTP/1.1"), (200, {"size": 500_000}, "HTTP/1.1")]


def test_a_request_in_the_packet_that_ends_the_handshake(certificate: Certificate) -> None:  # noqa: F811
    async def scenario() -> bytes:
        trusted = ssl.create_default_context(cafile=certificate.cert)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = trusted.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        async with listening(context_of(certificate)) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    writer.write(outgoing.read())
                    incoming.write(await reader.read(65536))
            client.write(REQUEST + b"Connection: close\r\n\r\n{}")
            writer.write(outgoing.read())
            answer = b""
            while not answer.endswith(b"}") and (data := await reader.read(65536)):
                incoming.write(data)
                with suppress(ssl.SSLWantReadError):
                    while part := client.read(65536):
                        answer += part
            writer.close()
            return answer

    answer = run(scenario)
    assert answer.startswith(b"HTTP/1.1 200") and b'{"size":2}' in answer


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00"])
def test_a_handshake_that_does_not_end(certificate: Certificate, sent: bytes) -> None:  # noqa: F811
    async def scenario() -> tuple[bytes, int]:
        limits = replace(LIMITS, header_timeout=0.3)
        async with listening(context_of(certificate), limits) as (port, state):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            found = await broken(reader)
            writer.close()
            return found, len(state.connections)

    assert run(scenario) == (b"", 0)


def test_a_request_that_does_not_end(certificate: Certificate) -> None:  # noqa: F811
    """The limits of a connection hold behind the handshake, too."""

    async def scenario() -> bytes:
        trusted = ssl.create_default_context(cafile=certificate.cert)
        async with listening(context_of(certificate), replace(LIMITS, header_timeout=0.3)) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted)
            writer.write(REQUEST)
            found = await broken(reader)
            writer.close()
            return found

    assert run(scenario) == b""


def test_handshakes_are_connections(certificate: Certificate) -> None:  # noqa: F811
    async def scenario() -> bytes:
        limits = replace(LIMITS, max_connections=2)
        trusted = ssl.create_default_context(cafile=certificate.cert)
        async with listening(context_of(certificate), limits) as (port, state):
            _, silent = await asyncio.open_connection("127.0.0.1", port)
            reader, good = await asyncio.open_connection("127.0.0.1", port, ssl=trusted)
            third, one_more = await asyncio.open_connection("127.0.0.1", port)
            assert await broken(third) == b""
            assert len(state.connections) == 2
            good.write(REQUEST + b"Connection: close\r\n\r\n{}")
            answer = await reader.read()
            for each in (silent, good, one_more):
                each.close()
            return answer[:12]

    assert run(scenario) == b"HTTP/1.1 200"


def test_certificates_of_clients(certificate: Certificate, tmp_path: Path) -> None:  # noqa: F811
    asked = context_of(certificate, ca_certs=certificate.cert, cert_reqs=2)

    async def scenario(shown: Certificate | None) -> int:
        trusted = ssl.create_default_context(cafile=certificate.cert)
        if shown:
            trusted.load_cert_chain(shown.cert, shown.key)
        async with listening(asked) as (port, _), httpx.AsyncClient(verify=trusted) as client:
            return (await client.get(f"https://127.0.0.1:{port}/health")).status_code

    assert run(lambda: scenario(certificate)) == 200
    for stranger in (None, make(tmp_path)):
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            run(lambda: scenario(stranger))  # noqa: B023


def test_files_that_are_no_certificate_with_its_key(certificate: Certificate, tmp_path: Path) -> None:  # noqa: F811
    other, text = make(tmp_path), tmp_path / "text"
    text.write_text("no PEM")
    for arguments, message in {
        (certificate.cert, None): "--ssl-certfile and --ssl-keyfile",
        (None, certificate.key): "--ssl-certfile and --ssl-keyfile",
        (None, None, certificate.cert): "--ssl-certfile and --ssl-keyfile",
        (certificate.cert, other.key): "is not the key of",
        (text, other.key): "no certificate with its key, in PEM",
        (certificate.cert, certificate.locked): "is encrypted",
        (certificate.cert, tmp_path): "cannot be read",
        (certificate.cert, certificate.key, text): "holds no certificate",
        (certificate.cert, certificate.key, None, 2): "--ssl-ca-certs",
    }.items():
        with pytest.raises(ConfigError, match=message):
            server_context(*arguments)  # type: ignore[arg-type]
    assert server_context(None, None) is None


def test_what_a_client_trusts(certificate: Certificate, tmp_path: Path) -> None:  # noqa: F811
    async def scenario() -> None:
        def ask(verify: Any) -> bool:
            with Client(f"https://127.0.0.1:{port}", verify=verify, max_retries=0) as client:
                return client.health()

        async with listening(context_of(certificate)) as (port, _):
            assert await asyncio.to_thread(ask, certificate.cert) and await asyncio.to_thread(ask, False)
            for strange in (True, make(tmp_path).cert):
                with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
                    await asyncio.to_thread(ask, strange)

    run(scenario)
    with pytest.raises(ConfigError, match="no/such"):
        Client(verify="no/such")


async def broken(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server ends or breaks the connection."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""
