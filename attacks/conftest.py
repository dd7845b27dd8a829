"""One server with short times and small limits, a process of its own; after each attack it answers a good request."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.models import tiny
from tests.seeds import pytest_fixture_setup, pytest_make_collect_report, pytest_runtest_call  # noqa: F401  # hooks

KEY = "key-of-these-tests"
BEARER = {"Authorization": f"Bearer {KEY}"}
MAX_BODY = 65536
LIMITS = (
    "--header-timeout 1 --body-timeout 1 --write-timeout 1 --keep-alive-timeout 2 --max-connections 64 "
    f"--max-body-bytes {MAX_BODY} --max-inputs 50 --max-request-tokens 4000 --request-timeout 20"
).split()
MAIN = "from vllm_cls.cli.main import main; main()"


@dataclass(frozen=True)
class Target:
    """A running server, and what it logs to."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> httpx.Response:
        """A request with a key: GET, or POST of JSON."""
        url, headers = f"http://127.0.0.1:{self.port}{path}", {**BEARER, **(headers or {})}
        if body is None:
            return httpx.get(url, headers=headers, timeout=30)
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return httpx.post(url, headers={"Content-Type": "application/json", **headers}, content=body, timeout=30)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=15)

    def raw(self, data: bytes) -> bytes:
        """Send bytes; what comes back until the server closes, or until it breaks the connection."""
        with self.connect() as connection:
            with suppress(ConnectionError):
                connection.sendall(data)
            return read_all(connection)

    def answered(self, data: bytes) -> int:
        """The status of the answer to one request, after which the connection is good for another."""
        (head, _), (last, _) = parsed = answers_in(self.raw(data + LAST))
        assert last.startswith(b"HTTP/1.1 200") and CLOSES not in head.lower(), parsed
        return status_of(parsed[0])

    def refused(self, data: bytes) -> int:
        """The status of the answer to bytes that end their connection: a good request behind them gets none."""
        ((head, _),) = parsed = answers_in(self.raw(data + LAST))
        assert CLOSES in head.lower(), parsed
        return status_of(parsed[0])

    def post(self, body: bytes, *headers: str, path: str = "/classify") -> bytes:
        """A request as bytes: a POST of `body` with a key, and more header lines. It does not say that it is the last."""
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}", *headers]
        if not any(each.lower().startswith(("content-length", "transfer-encoding")) for each in headers):
            lines.append(f"Content-Length: {len(body)}")
        lines += ["Content-Type: application/json", "", ""]
        return "\r\n".join(lines).encode("latin-1") + body

    def get(self, target: str, *headers: str, method: str = "GET") -> bytes:
        """A request as bytes, without a key; it does not say that it is the last."""
        return "\r\n".join([f"{method} {target} HTTP/1.1", *(headers or ["Host: localhost"]), "", ""]).encode("latin-1")

    def resident(self) -> float:
        """Bytes of memory that the server has."""
        lines = self.ask("/metrics").text.splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("process_resident_memory_bytes ")))


LAST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
CLOSES = b"\r\nconnection: close"


def read_all(connection: socket.socket) -> bytes:
    """Everything until the peer closes, or breaks the connection."""
    parts = []
    with suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def answers_in(data: bytes) -> list[tuple[bytes, bytes]]:
    """The heads and bodies of the answers, none of them to HEAD."""
    answers = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        length = int(re.findall(rb"(?i)\r\ncontent-length: (\d+)", head)[0])
        answers.append((head, data[:length]))
        data = data[length:]
    return answers


def status_of(answer: tuple[bytes, bytes]) -> int:
    """The status of an answer; its body must be an error in the one form."""
    head, body = answer
    status = int(head.split()[1])
    if status >= 400:
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    return status


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("attacked")
    model, log, keys = tiny.classifier("bert", folder / "model"), folder / "log", folder / "keys"
    keys.write_text(KEY)
    command = [sys.executable, "-c", MAIN, "serve", str(model), "--port", "0", "--api-key-file", str(keys), *LIMITS]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        found = None
        for _ in range(600):
            found = re.search(r"serving .* at http://127\.0\.0\.1:(\d+)", log.read_text())
            if found or process.poll() is not None:
                break
            time.sleep(0.1)
        assert found, log.read_text()
        yield Target(int(found[1]), process, log)
    finally:
        process.terminate()
        assert process.wait(60) == 0, log.read_text()[-4000:]


@pytest.fixture(autouse=True)
def still_serves(server: Target) -> Iterator[None]:
    """After an attack a good request succeeds, and nothing was a fault of ours."""
    before = server.log.read_text().count("fault of vllm-cls")
    yield
    answer = server.ask("/classify", {"input": "good"})
    assert answer.status_code == 200
    assert sum(answer.json()["data"][0]["probs"]) == pytest.approx(1, abs=1e-4)
    assert server.log.read_text().count("fault of vllm-cls") == before
