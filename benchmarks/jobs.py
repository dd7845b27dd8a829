"""Jobs over files: the memory of one with many rows, and the share of the time in which the device computes.

    python benchmarks/jobs.py [--rows 10000000] [--shapes bert-base] [--busy-rows 512] [--quick]

Memory: `vcls classify` with a tiny model over so many short rows, 1,000 different ones, since what a row costs to compute
does not matter here; its peak above that of the same command over 64 rows. Busy: `classify_file` of each shape over rows of
mixed lengths, as `--stats` tells it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _common import Results, arguments, parsed

from vllm_cls import LLM, classify_file
from vllm_cls.bench.environment import environment
from vllm_cls.runtime.machine.cores import usable_cores

FEW_ROWS = 64
TARGET_BYTES, TARGET_BUSY = 600e6, 0.95


def main(given: list[str] | None = None) -> None:
    parser = arguments(__doc__, ["bert-base"])
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the job whose memory is measured; 0 for none")
    parser.add_argument("--busy-rows", type=int, default=512, help="of each other job")
    options = parsed(parser, given, tiny=["tiny-bert"])
    if options.quick:
        options.rows, options.busy_rows = min(options.rows, 20_000), min(options.busy_rows, 500)
    results = Results("jobs", options)
    ran_on = environment(options.threads or usable_cores())
    print(f"on {ran_on['cpu']}, {ran_on['cores']} cores, load {ran_on['load_average'][0]:.1f}")
    if options.rows:
        write(results, f"memory, {options.rows:,} rows", memory(results.model("tiny-bert"), options), ran_on)
    for shape in options.shapes:
        write(results, f"busy, {shape}", busy(results.model(shape), options), ran_on)


def memory(model: str, options: Any) -> dict[str, Any]:
    """Peaks of `vcls classify` with few rows and with many, in bytes."""
    peaks = {}
    for rows in (FEW_ROWS, options.rows):
        source, out = options.folder / "rows.jsonl", options.folder / "out.jsonl"
        write_rows(source, rows)
        began = time.perf_counter()
        peaks[rows] = peak_of(["classify", model, str(source), "-o", str(out), "--overwrite", "--restart", "-q"])
        seconds = time.perf_counter() - began
        with open(out, "rb") as file:
            assert sum(1 for _ in file) == rows
        source.unlink()
        out.unlink()
    above = peaks[options.rows] - peaks[FEW_ROWS]
    print(
        f"memory: {options.rows:,} rows in {seconds:.0f} s ({options.rows / seconds:,.0f} rows/s), peak "
        f"{peaks[options.rows] / 1e6:.0f} MB, {above / 1e6:.0f} MB above that of {FEW_ROWS} rows; "
        f"target {TARGET_BYTES / 1e6:.0f} MB"
    )
    return {"rows": options.rows, "seconds": seconds, "peak_bytes": peaks[options.rows], "above_few_rows_bytes": above}


def write_rows(path: Path, count: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps({"id": number, "text": f"the film is {number % 1000}"}) + "\n")


def peak_of(command: list[str]) -> int:
    """The largest resident memory of a `vcls` command, in bytes."""
    process = subprocess.Popen([sys.executable, "-c", "from vllm_cls.cli.main import main; main()", *command])
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, status
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def busy(model: str, options: Any) -> dict[str, Any]:
    """Where the time of a job went."""
    source, out = options.folder / "rows.jsonl", options.folder / "out.jsonl"
    chance = random.Random(0)
    with LLM(model, num_threads=options.threads) as llm:
        words = sorted(word for word in llm.get_tokenizer().get_vocab() if word.isalpha())
        with open(source, "w", encoding="utf-8") as file:
            for number in range(options.busy_rows):
                text = " ".join(chance.choices(words, k=1 + round(chance.lognormvariate(3.5, 0.6))))
                file.write(json.dumps({"id": number, "text": text}) + "\n")
        llm.classify(words[:8], use_tqdm=False)
        stats = classify_file(llm, source, out, overwrite=True, restart=True).stats
    source.unlink()
    out.unlink()
    assert stats is not None
    print(
        f"busy: {Path(model).name}, {stats.rows:,} rows, {stats.rows_per_second:,.1f} rows/s, "
        f"{stats.tokens_per_second:,.0f} tokens/s, the device busy {stats.busy:.1%}; target {TARGET_BUSY:.0%} "
        f"(reading {stats.reading:.2f} s, tokenizing {stats.tokenizing:.2f}, computing {stats.computing:.2f}, writing "
        f"{stats.writing:.2f}, waiting {stats.waiting:.2f}); {stats.execution}"
    )
    return {**vars(stats), "busy": stats.busy}


def write(results: Results, title: str, found: dict[str, Any], ran_on: dict[str, Any]) -> None:
    results.keep({"title": title, "command": " ".join(["python", *sys.argv]), "environment": ran_on, **found})


if __name__ == "__main__":
    main()
