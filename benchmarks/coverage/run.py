"""Which of transformers' architectures become classifiers, and how each of them runs.

    python -m benchmarks.coverage.run                        all of them, docs/coverage.md and results/coverage.json
    python -m benchmarks.coverage.run --types llama bloom    these alone, into the same files
    python -m benchmarks.coverage.run --missing              those that no earlier run has a result of

Every causal LM, sequence classifier and base model for texts is built with a small config, converted
(`--head random --seed 0`; a classifier keeps its head), run in every form, and reopened in transformers.
Each model type has a process of its own with a time limit, so that a crash costs itself alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from .refused import refused_types
from .report import report

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "coverage.json"
IMAGES = ROOT / "benchmarks" / "results" / "coverage_images.json"
DOCS = ROOT / "docs" / "coverage.md"
MAPPINGS = ("causal", "classifier", "base")


def main(given: Sequence[str] | None = None) -> int:
    """Run what is asked for, and write what is known. Returns 1 where something fails that transformers can run."""
    options = _options(given)
    known = _read(options.results)
    if not options.report_only:
        started = time.monotonic()
        for model_type, mappings in _asked(options, known):
            if options.seconds is not None and time.monotonic() - started > options.seconds:
                print("out of time; go on with --missing", flush=True)
                break
            for row in _in_own_process(model_type, mappings, options.limit):
                known[f"{row['mapping']}/{row['model_type']}"] = row
                print(
                    f"{row['mapping']:<11}{row['model_type']:<28}{row['status']:<7} {row['form'] or row['why']}",
                    flush=True,
                )
                if row["status"] == "fails":
                    print(f"           {row['why']}", flush=True)
            _write(options.results, known)
    if options.results == RESULTS or options.docs != DOCS:
        options.docs.write_text(_document(options.results), encoding="utf-8")
    return int(any(row["status"] == "fails" for row in known.values()))


def _options(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", metavar="TYPE", help="model types; else all")
    parser.add_argument("--mappings", nargs="+", choices=MAPPINGS, default=list(MAPPINGS))
    parser.add_argument("--missing", action="store_true", help="only those without a result")
    parser.add_argument("--failing", action="store_true", help="only those that failed")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one model type")
    parser.add_argument("--seconds", type=float, help="begin no other model type after this time")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--report-only", action="store_true", help="write the table of what is known, run nothing")
    return parser.parse_args(given)


def _asked(options: argparse.Namespace, known: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Model types with the mappings that they are in and that are asked for."""
    from .case import model_types

    pairs: dict[str, list[str]] = {}
    for mapping in options.mappings:
        for model_type in model_types(mapping):
            row = known.get(f"{mapping}/{model_type}")
            wanted = options.types is None or model_type in options.types
            wanted = (
                wanted
                and not (options.missing and row)
                and not (options.failing and (row is None or row["status"] != "fails"))
            )
            if wanted:
                pairs.setdefault(model_type, []).append(mapping)
    return sorted(pairs.items())


def _in_own_process(model_type: str, mappings: list[str], limit: float) -> list[dict[str, Any]]:
    """Rows of one model type, by a fork that has everything imported; what it did not get to says why."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(model_type, mappings, sending))
    process.start()
    sending.close()
    deadline = time.monotonic() + limit
    rows = []
    try:
        while len(rows) < len(mappings) and receiving.poll(max(0.0, deadline - time.monotonic())):
            rows.append(receiving.recv())
    except EOFError:  # it ended without a word
        pass
    late = process.is_alive() and len(rows) < len(mappings)
    if late:
        process.kill()
    process.join()
    why = f"no result after {limit:.0f} s" if late else f"its process ended with code {process.exitcode}"
    for mapping in mappings[len(rows) :]:
        rows.append({**_empty(mapping, model_type), "status": "fails", "why": why})
    return rows


def _empty(mapping: str, model_type: str) -> dict[str, Any]:
    from .case import Row

    return Row(mapping, model_type).to_dict()


def _work(model_type: str, mappings: list[str], sending: Any) -> None:
    import torch
    from transformers.utils import logging

    from .case import run_case

    torch.set_num_threads(1)
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    for mapping in mappings:
        with tempfile.TemporaryDirectory() as folder:
            sending.send(run_case(mapping, model_type, Path(folder)).to_dict())


def _document(path: Path) -> str:
    from .case import TOLERANCE

    content = json.loads(path.read_text())
    tried = {row["model_type"] for row in content["rows"]}
    images = json.loads(IMAGES.read_text()) if IMAGES.is_file() else []
    return report(content["rows"], refused_types(but=tried), content["versions"], TOLERANCE, images)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return {f"{row['mapping']}/{row['model_type']}": row for row in json.loads(path.read_text())["rows"]}


def _write(path: Path, known: dict[str, Any]) -> None:
    import torch
    import transformers

    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "command": "python -m benchmarks.coverage.run",
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "rows": [known[name] for name in sorted(known)],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
