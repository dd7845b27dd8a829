"""`vcls serve` over loopback, beside the engine's offline throughput and a bare forward, in the same run.

    python -m benchmarks.server.speed [--shapes bert-base …] [--seconds 10] [--connections 1 8 32 128] [--quick]

The server is a process of its own; the clients are coroutines of this one, on the same cores. Closed loop: every connection
asks again as soon as it is answered. Open loop: requests come by a Poisson process at a share of the offline throughput,
and their time counts from when they were due. Texts have some 20 tokens, all in flight are different; a rerank is one query
with 100 such documents. Offline is `LLM.classify` or `LLM.score` of the same, before and after; the bare forward is
transformers' model on one tokenized text.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm_cls import LLM
from vllm_cls.bench.environment import environment
from vllm_cls.runtime.machine.cores import usable_cores

from .._common import arguments, parsed
from .load import Server, closed_loop, make_texts, one_label, open_loop, post, quantile, serving

TEXTS, DOCUMENTS = 1024, 100
RATES = (0.5, 0.8)  # of the offline throughput
SATURATED, FACTOR, MILLISECONDS = 0.85, 1.3, 3.0  # the targets
FEWEST = 10  # requests, for a rate
LONGEST_ROUND = 100.0  # seconds: more connections than are answered once within them are not tried


def main(given: list[str] | None = None) -> None:
    parser = arguments(__doc__, ["bert-base", "minilm"])
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32, 128])
    options = parsed(parser, given, tiny=["tiny-bert"])
    if options.quick:
        options.seconds, options.connections = 1, [1, 8]
    threads = options.threads or usable_cores()
    documents = []
    for shape in options.shapes:
        folder = one_label(shape, options.folder)
        documents.append({"title": shape, **measure(str(folder), threads, options.seconds, options.connections)})
        show(documents[-1])
        write(options.results / "server.json", environment(threads), documents)


def measure(folder: str, threads: int, seconds: float, connections: Sequence[int]) -> dict[str, Any]:
    """Both workloads of one model."""
    texts = make_texts(folder, TEXTS)
    short = [post("/classify", {"input": text}) for text in texts]
    reranks = [(texts[i], texts[i + 1 : i + 1 + DOCUMENTS]) for i in range(0, len(texts) - DOCUMENTS, 7)]
    bodies = [post("/rerank", {"query": query, "documents": listed}) for query, listed in reranks]
    with LLM(folder, num_threads=threads) as llm, serving(folder, "--num-threads", str(threads)) as server:
        bare = [bare_forward(folder, texts, threads)]
        found: dict[str, Any] = {}
        classify = itertools.cycle(texts[i : i + 256] for i in range(0, len(texts), 256))
        score = itertools.cycle(reranks)
        for name, requests, run, count in (
            ("classify", short, lambda: llm.classify(next(classify)), 256),
            ("rerank", bodies, lambda: llm.score(*next(score)), 1),
        ):
            print(f"\n== {Path(folder).name}, {name}", flush=True)
            found[name] = load(server, requests, run, count, seconds, connections)
        bare.append(bare_forward(folder, texts, threads))
    return {"bare_forward_ms": min(bare), "bare_forwards_ms": bare, **found}


def load(
    server: Server,
    requests: Sequence[bytes],
    run: Callable[[], object],
    count: int,
    seconds: float,
    connections: Sequence[int],
) -> dict[str, Any]:
    """One workload, closed and open loop; `run` does `count` requests' worth of it offline."""
    cycle = itertools.cycle(requests).__next__
    offline = [offline_rate(run, count, seconds)]
    closed, opened = [], []
    for number in connections:
        if number / offline[0] > LONGEST_ROUND:
            print(f"  {number} connections: left out, one round would take {number / offline[0]:.0f} s", flush=True)
            continue
        length = max(seconds, FEWEST / offline[0])
        closed.append(timed(server, closed_loop(server.port, number, cycle, min(2.0, seconds), length)))
    for share in RATES if FEWEST / offline[0] <= seconds else ():
        found = timed(server, open_loop(server.port, share * offline[0], cycle, min(2.0, seconds), seconds))
        opened.append({"share_of_offline": share, **found})
    offline.append(offline_rate(run, count, seconds))
    rate = statistics.mean(offline)
    best = max(each["requests_per_second"] for each in closed)
    return {"offline_per_second": rate, "offline": offline, "saturated": best / rate, "closed": closed, "open": opened}


def timed(server: Server, coroutine: Any) -> dict[str, Any]:
    """A load, with what it took of the server's processor time and memory."""
    before, began = server.cpu_seconds(), time.perf_counter()
    found: dict[str, Any] = asyncio.run(coroutine)
    busy = (server.cpu_seconds() - before) / (time.perf_counter() - began)
    found |= {"server_cores": busy, "server_rss_bytes": server.rss_bytes()}
    who = f"{found['connections']} connections" if "connections" in found else f"{found['rate']:.1f} a second"
    print(
        f"  {who:<18}{found['requests_per_second']:>9.1f} requests/s  p50 {found['p50_ms']:>8.1f} ms  "
        f"p99 {found['p99_ms']:>8.1f} ms  {busy:.2f} cores  {found['statuses']} lost {found['lost']}",
        flush=True,
    )
    return found


def offline_rate(run: Callable[[], object], count: int, seconds: float) -> float:
    """Requests' worth a second."""
    run()
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        run()
        done += count
    rate = done / (time.perf_counter() - began)
    print(f"  offline           {rate:>9.1f} requests' worth/s", flush=True)
    return rate


def bare_forward(folder: str, texts: Sequence[str], threads: int, rounds: int = 100) -> float:
    """Median milliseconds of transformers' forward of one tokenized text."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    seconds = []
    with torch.inference_mode():
        for text in texts[: rounds + 10]:
            inputs = tokenizer(text, return_tensors="pt")
            began = time.perf_counter()
            model(**inputs)
            seconds.append(time.perf_counter() - began)
    torch.set_num_threads(before)
    return 1000 * quantile(sorted(seconds[10:]), 0.5)


def show(document: dict[str, Any]) -> None:
    print(f"\n{document['title']}: a bare forward of one text takes {document['bare_forward_ms']:.1f} ms")
    alone = next((each for each in document["classify"]["closed"] if each["connections"] == 1), None)
    if alone:
        limit = FACTOR * document["bare_forward_ms"] + MILLISECONDS
        print(f"  a request alone takes {alone['p50_ms']:.1f} ms at the median; target {limit:.1f} ms")
    for name in ("classify", "rerank"):
        print(
            f"  {name}: {document[name]['saturated']:.0%} of the offline throughput; target {SATURATED:.0%}", flush=True
        )


def write(path: Path, ran_on: dict[str, Any], documents: list[dict[str, Any]]) -> None:
    """All that is measured so far; shapes that were measured in other runs stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text())["results"] if path.exists() else []
    fresh = [{"command": " ".join(["python", *sys.argv]), "environment": ran_on, **each} for each in documents]
    titles = {each["title"] for each in fresh}
    content = {"results": [each for each in kept if each["title"] not in titles] + fresh}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
