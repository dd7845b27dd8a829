"""Three minutes of mixed load on `vcls serve`, then SIGTERM under load: memory stands still, no request is lost.

    python -m benchmarks.server.soak [--shapes minilm] [--seconds 180] [--ahead-seconds 60] [--ahead-alone] [--quick]

The load: single texts, lists of texts, reranks, requests that are wrong, clients that leave before their answer. A request
is lost if its connection ends without an answer, its client being there. After SIGTERM clients go on asking until the
server says that it closes their connections, or refuses new ones.

Then a minute of requests that one client without a key sends ahead, without waiting for the answers before, which it reads, and
a minute of those which it does not read.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import select
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vllm_cls.bench.environment import environment
from vllm_cls.runtime.machine.cores import usable_cores

from .._common import arguments, parsed
from .load import HOST, Answers, Connection, Server, make_texts, one_label, post, serving

CLIENTS = 24
WARM_UP, COMPARED = 1 / 3, 1 / 6  # of the whole time; until then the allocator has seen every size of batch
GROWTH = 0.02  # the target
LEAVES = 0.05  # share of clients that leave before their answer
BEFORE_TERM = 3.0  # seconds of load
AHEAD = "requests sent ahead without a key"
AHEAD_GROWTH = 20e6  # bytes, the target


def main(given: list[str] | None = None) -> None:
    parser = arguments(__doc__, ["minilm"])
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--ahead-seconds", type=float, default=60)
    parser.add_argument("--ahead-alone", action="store_true", help="leave out the mixed load")
    options = parsed(parser, given, tiny=["tiny-bert"])
    if options.quick:
        options.seconds = options.ahead_seconds = 6
    threads = options.threads or usable_cores()
    path = options.results / "soak.json"
    for shape in () if options.ahead_alone else options.shapes:
        folder = one_label(shape, options.folder)
        requests = make_requests(make_texts(folder, 2048))
        with serving(folder, "--num-threads", str(threads)) as server:
            found = {"soak": asyncio.run(soak(server, requests, options.seconds))}
            show_soak(shape, found["soak"])
            found["stop"] = asyncio.run(stop(server, requests))
            show_stop(found["stop"])
        keep(path, {"title": shape, "seconds": options.seconds, "environment": environment(threads), **found})
    with serving(one_label("tiny-bert", options.folder), "--api-key", "a-key", "--log-level", "error") as server:
        kinds = {kind: ahead(server, options.ahead_seconds, kind == "read") for kind in ("read", "not read")}
    show_ahead(kinds)
    keep(path, {"title": AHEAD, "seconds": options.ahead_seconds, "environment": environment(threads), **kinds})


def keep(path: Path, document: dict[str, Any]) -> None:
    """Write a document beside those of other titles that are there."""
    documents = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []
    others = [each for each in documents if each["title"] != document["title"]]
    content = {"results": [*others, {"command": " ".join(["python", *sys.argv]), **document}]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def make_requests(texts: Sequence[str]) -> Callable[[], bytes]:
    """Mixed requests without end, the same in every run."""
    numbers = random.Random(0)

    def body() -> bytes:
        kind = numbers.random()
        if kind < 0.6:
            return post("/classify", {"input": numbers.choice(texts)})
        if kind < 0.8:
            return post(
                "/classify", {"input": numbers.choices(texts, k=numbers.randint(2, 32)), "use_activation": False}
            )
        if kind < 0.9:
            return post("/rerank", {"query": numbers.choice(texts), "documents": numbers.choices(texts, k=20)})
        if kind < 0.95:
            return post("/pooling", {"input": numbers.choice(texts), "task": "embed"})
        return post(
            "/classify", numbers.choice([{"input": []}, {"input": [10**7]}, {"inputs": "x"}, {"input": ["x", 1]}])
        )

    return itertools.cycle([body() for _ in range(4000)]).__next__


async def soak(server: Server, next_request: Callable[[], bytes], seconds: float) -> dict[str, Any]:
    """The load, and the server's memory every half second."""
    answers, began = Answers(), time.perf_counter()
    left = [0]
    clients = [asyncio.ensure_future(client(server.port, next_request, answers, left)) for _ in range(CLIENTS)]
    memory: list[tuple[float, int]] = []
    while (now := time.perf_counter() - began) < seconds:
        memory.append((now, server.rss_bytes()))
        await asyncio.sleep(0.5)
    for each in clients:
        each.cancel()
    await asyncio.wait(clients)
    early = mean_between(memory, WARM_UP * seconds, (WARM_UP + COMPARED) * seconds)
    late = mean_between(memory, (1 - COMPARED) * seconds, seconds)
    return {
        **answers.summary(began, began + seconds), "left_early": left[0], "rss_after_warm_up": early, "rss_at_end": late,
        "growth": late / early - 1, "rss_bytes": [size for _, size in memory],
    }  # fmt: skip


async def client(port: int, next_request: Callable[[], bytes], answers: Answers, left: list[int]) -> None:
    """Ask, now and then leave before the answer, and come back."""
    numbers = random.Random(id(answers) + left[0])
    connection = await Connection.to(port)
    try:
        while True:
            if numbers.random() < LEAVES:
                leaving = asyncio.ensure_future(connection.ask(next_request()))
                await asyncio.wait([leaving], timeout=numbers.random() / 20)
                connection.close()
                await asyncio.gather(leaving, return_exceptions=True)
                left[0] += 1
                connection = await Connection.to(port)
            began = time.perf_counter()
            try:
                answers.count((await connection.ask(next_request()))[0], began)
            except ConnectionError:
                answers.lost += 1
                connection = await Connection.to(port)
    finally:
        connection.close()


def mean_between(memory: Sequence[tuple[float, int]], start: float, end: float) -> float:
    return statistics.mean(size for at, size in memory if start <= at <= end)


async def stop(server: Server, next_request: Callable[[], bytes]) -> dict[str, Any]:
    """SIGTERM under load: what became of every request, and of the process."""
    answers, sent = Answers(), [0]

    async def until_it_ends() -> None:
        try:
            connection = await Connection.to(server.port)
            while True:
                if connection.ends:
                    connection.close()
                    connection = await Connection.to(server.port)
                sent[0] += 1
                answers.count((await connection.ask(next_request()))[0], time.perf_counter())
        except ConnectionRefusedError:
            return  # it listens no more
        except ConnectionError:
            answers.lost += 1

    clients = [asyncio.ensure_future(until_it_ends()) for _ in range(CLIENTS)]
    await asyncio.sleep(BEFORE_TERM)
    before, began = sum(answers.statuses.values()), time.perf_counter()
    server.terminate()
    await asyncio.wait(clients, timeout=60)
    code = await asyncio.to_thread(server.process.wait, 60)
    return {
        "sent": sent[0], "answered": sum(answers.statuses.values()), "answered_after_the_signal":
        sum(answers.statuses.values()) - before, "statuses": answers.statuses, "lost": answers.lost,
        "seconds": time.perf_counter() - began, "exit_code": code,
    }  # fmt: skip


def ahead(server: Server, seconds: float, reads: bool) -> dict[str, Any]:
    """The server's memory while one client sends what it can, and comes back when its connection is broken."""
    before = highest = server.rss_bytes()
    sent = received = connections = 0
    until, due = time.monotonic() + seconds, 0.0
    requests = pipeline()
    while time.monotonic() < until:
        connections += 1
        with socket.create_connection((HOST, server.port)) as connection:
            connection.setblocking(False)
            unsent = b""
            while (now := time.monotonic()) < until:
                if now >= due:
                    highest, due = max(highest, server.rss_bytes()), now + 0.1
                readable, writable, _ = select.select([connection] if reads else [], [connection], [], 0.1)
                try:
                    if readable:
                        received += len(connection.recv(1 << 20))
                    if writable:
                        unsent = unsent or next(requests)
                        sent += (went := connection.send(unsent))
                        unsent = unsent[went:]
                except ConnectionError:  # not read for --write-timeout
                    break
            highest = max(highest, server.rss_bytes())
    return {"rss_before": before, "rss_highest": highest, "rss_after": server.rss_bytes(), "growth_bytes": highest - before,
            "bytes_sent": sent, "bytes_received": received, "connections": connections}  # fmt: skip


def pipeline() -> Iterator[bytes]:
    """Requests without end, a thousand at a time: of a route that is open, and of one that is not."""
    requests = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n" for path in ("/health", "/v1/models")]
    return itertools.repeat("".join(requests * 500).encode())


def show_soak(shape: str, found: dict[str, Any]) -> None:
    print(f"{shape}: {found['requests']} good answers, {found['requests_per_second']:.1f} a second, "
          f"statuses {found['statuses']}, {found['left_early']} clients left, {found['lost']} requests lost")  # fmt: skip
    print(f"  memory {found['rss_after_warm_up'] / 1e6:.1f} MB after warm-up, {found['rss_at_end'] / 1e6:.1f} MB at the end: "
          f"{found['growth']:+.2%}; target {GROWTH:.0%}", flush=True)  # fmt: skip


def show_stop(found: dict[str, Any]) -> None:
    print(f"  SIGTERM under load: {found['answered_after_the_signal']} of {found['sent']} requests answered after it, "
          f"statuses {found['statuses']}, {found['lost']} lost; "
          f"ended with {found['exit_code']} in {found['seconds']:.1f} s")  # fmt: skip


def show_ahead(kinds: dict[str, dict[str, Any]]) -> None:
    for kind, found in kinds.items():
        print(f"{AHEAD}, answers {kind}: memory {found['rss_before'] / 1e6:.1f} MB before, {found['rss_highest'] / 1e6:.1f} MB at "
              f"most, {found['rss_after'] / 1e6:.1f} MB after: {found['growth_bytes'] / 1e6:+.1f} MB; target below "
              f"{AHEAD_GROWTH / 1e6:.0f} MB ({found['bytes_sent'] / 1e6:.1f} MB sent, {found['bytes_received'] / 1e6:.1f} MB of "
              f"answers read, {found['connections']} connections)", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
