"""Rows a second of a job over a file: here, and with one and two workers of a Ray cluster of this machine.

    python benchmarks/ray_jobs.py [--quick] [--rounds 5] [--shapes minilm] [--rows 4096] [--threads 1]

Each worker has `--threads` threads, and so has the job without Ray; that the bytes are equal is checked. Parts have 256 rows, so
that there are many of them. Loading the model is not counted, as everywhere.
"""

from __future__ import annotations

import json
import logging
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import arguments, parsed

from vllm_cls.bench.environment import environment
from vllm_cls.bench.shapes import write_model
from vllm_cls.distributed import RayWorkers
from vllm_cls.jobs.classify import classify_file
from vllm_cls.jobs.resume import parts

parts.PART_ROWS = 256


def write_rows(path: Path, count: int) -> None:
    """Texts of 4 to 60 words."""
    draw = random.Random(0)
    words = "the film was good bad long and a story of two friends who never met again in that town".split()
    with path.open("w") as file:
        for n in range(count):
            file.write(json.dumps({"id": n, "text": " ".join(draw.choices(words, k=draw.randint(4, 60)))}) + "\n")


def measure(model: Path, rows: Path, folder: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Rows a second of each contender, in turns."""
    contenders: dict[str, Any] = {
        "here": str(model),
        "1 worker": RayWorkers(model, 1),
        "2 workers": RayWorkers(model, 2),
    }
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        written = set()
        for name, each in contenders.items():
            out = folder / "out.jsonl"
            report = classify_file(each, rows, out, overwrite=True, num_threads=threads, device="cpu")
            found[name].append(report.rows / report.seconds)
            written.add(out.read_bytes())
        assert len(written) == 1, "the outputs differ"
    return {
        name: {"median_rows_per_second": statistics.median(all_of), "rows_per_second": all_of}
        for name, all_of in found.items()
    }


def main(given: list[str] | None = None) -> None:
    parser = arguments(__doc__, ["minilm"])
    parser.add_argument("--rows", type=int, default=4096)
    options = parsed(parser, given, tiny=["tiny-bert"])
    import ray

    threads = options.threads or 1
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    documents = []
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "in.jsonl"
        write_rows(rows, options.rows)
        for shape in options.shapes:
            model = write_model(shape, options.folder)
            found = measure(model, rows, Path(folder), threads, options.rounds)
            print(f"{shape}, {options.rows} rows, {threads} thread(s) each")
            for name, each in found.items():
                print(f"  {name:<12}{each['median_rows_per_second']:10,.0f} rows/s", flush=True)
            documents.append({
                "title": shape, "command": " ".join(["python", *sys.argv]), "environment": environment(threads),
                "rows": options.rows, "threads_each": threads, "contenders": found,
            })  # fmt: skip
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "ray_jobs.json").write_text(
        json.dumps({"results": documents}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
