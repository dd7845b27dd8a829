"""A server in a process of its own, and clients that cost little beside it: requests are bytes made beforehand."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_cls.bench.inputs import Texts
from vllm_cls.bench.shapes import write_model
from vllm_cls.config import ModelConfig
from vllm_cls.model.loading.source import open_source

HOST = "127.0.0.1"
_LENGTHS = (20, 0.4)  # median and sigma of the lognormal lengths of texts, in tokens
_START = 120  # seconds


@dataclass
class Server:
    """`vcls serve` on a free port."""

    process: subprocess.Popen[bytes]
    port: int

    def rss_bytes(self) -> int:
        """Its resident memory (Linux)."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        (kilobytes,) = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
        return int(kilobytes) * 1024

    def cpu_seconds(self) -> float:
        """Processor time of all its threads (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def serving(model: str, *options: str) -> Iterator[Server]:
    """A server that is ready; it is told to stop at the end, and killed if it does not."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from vllm_cls.cli.main import main; main()", "serve", model]
    process = subprocess.Popen([*command, "--port", str(port), "--log-level", "warning", *options])
    try:
        _await_ready(process, port)
        yield Server(process, port)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_ready(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + _START
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode} before it was ready")
        with suppress(OSError):  # an answer that is no 200 is one too
            urllib.request.urlopen(f"http://{HOST}:{port}/ready", timeout=5).close()
            return
        time.sleep(0.1)
    raise SystemExit(f"the server was not ready within {_START} s")


def one_label(shape: str, folder: Path) -> str:
    """A model that classifies, scores and reranks."""
    (folder / "one-label").mkdir(parents=True, exist_ok=True)
    return str(write_model(shape, folder / "one-label", num_labels=1))


def make_texts(folder: str, count: int) -> list[str]:
    """Texts of the model's own words, all different."""
    options = ModelConfig.from_options(folder)
    workload = Texts(options, open_source(options)).workload("mixed", count=count, lengths=_LENGTHS)
    return [str(text) for text in dict.fromkeys(workload.texts)]


def post(path: str, body: dict[str, Any]) -> bytes:
    """A request as it goes over the wire."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


class Connection(asyncio.Protocol):
    """One connection that is kept: a request, its answer, the next one; `ends` once the server said so."""

    def __init__(self) -> None:
        self.ends = False
        self._received = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._closed = False
        self.transport: asyncio.Transport | None = None

    @classmethod
    async def to(cls, port: int) -> Connection:
        _, made = await asyncio.get_running_loop().create_connection(cls, HOST, port)
        return made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer.

        Raises:
            ConnectionError: the server closed the connection without one.
        """
        if self._closed or self.transport is None:
            raise ConnectionResetError
        self._received, self._answer = b"", asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or self._answer is None:
            return
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(body) >= length and not self._answer.done():
            self.ends = b"connection: close" in head.lower()
            self._answer.set_result((int(head.split(b" ", 2)[1]), body))

    def connection_lost(self, error: Exception | None) -> None:
        self._closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError())

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


@dataclass
class Answers:
    """What a load got: seconds of each good answer, by when it came; statuses of the others."""

    seconds: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    lost: int = 0

    def count(self, status: int, began: float) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            now = time.perf_counter()
            self.seconds.append(now - began)
            self.ended.append(now)

    def summary(self, began: float, ended: float) -> dict[str, Any]:
        """Of the answers that came between two times on `time.perf_counter`."""
        within = sorted(s for s, at in zip(self.seconds, self.ended, strict=True) if began <= at <= ended)
        return {
            "requests": len(within),
            "requests_per_second": len(within) / (ended - began),
            "p50_ms": 1000 * quantile(within, 0.5),
            "p99_ms": 1000 * quantile(within, 0.99),
            "statuses": dict(self.statuses),
            "lost": self.lost,
        }


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that so many are not above; NaN of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def closed_loop(
    port: int, connections: int, next_request: Callable[[], bytes], warm_up: float, seconds: float
) -> dict[str, Any]:
    """Each connection asks again as soon as it is answered."""
    answers = Answers()
    began = time.perf_counter() + warm_up
    ended = began + seconds

    async def client() -> None:
        connection = await Connection.to(port)
        try:
            while True:
                if connection.ends:
                    connection.close()
                    connection = await Connection.to(port)
                asked = time.perf_counter()
                try:
                    answers.count((await connection.ask(next_request()))[0], asked)
                except ConnectionError:
                    answers.lost += 1
                    connection.ends = True
        finally:
            connection.close()

    clients = [asyncio.ensure_future(client()) for _ in range(connections)]
    await asyncio.wait(clients, timeout=warm_up + seconds)
    for each in clients:  # what is unanswered now is in no figure
        each.cancel()
    await asyncio.wait(clients)
    return {"connections": connections, **answers.summary(began, ended)}


async def open_loop(
    port: int, rate: float, next_request: Callable[[], bytes], warm_up: float, seconds: float
) -> dict[str, Any]:
    """Requests come when they come (a Poisson process), whether the last ones were answered or not.

    An answer's time counts from when its request was due, not from when a connection was free for it.
    """
    answers, numbers = Answers(), random.Random(0)
    began = time.perf_counter() + warm_up
    ended = began + seconds
    idle: list[Connection] = []
    running: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        connection = idle.pop() if idle else await Connection.to(port)
        try:
            answers.count((await connection.ask(next_request()))[0], due)
            idle.append(connection)
        except ConnectionError:
            answers.lost += 1

    due = time.perf_counter()
    while due < ended:
        due += numbers.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.ensure_future(one(due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    for each in idle:
        each.close()
    return {"rate": rate, **answers.summary(began, ended)}
