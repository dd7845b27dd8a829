"""Which of transformers' models for images and texts become classifiers of both, and how they run.

    python -m benchmarks.coverage.images_run                   all of them: docs/coverage-images.md and its counts
    python -m benchmarks.coverage.images_run --types llava     these alone, into the same files

Each is built small with random weights, converted (`--head random --seed 0`) and run on prompts with one image, with two,
with one at the end and with none, all in one call. Each has a process of its own with a time limit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from .report import images_page
from .run import DOCS, IMAGES
from .run import main as write_docs

PAGE = DOCS.with_name("coverage-images.md")


def main(given: Sequence[str] | None = None) -> int:
    """Run what is asked for, and write what is known. Returns 1 where something fails that transformers can run."""
    from .case import TOLERANCE
    from .images import model_types

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", metavar="TYPE", help="model types; else all")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one model type")
    options = parser.parse_args(given)
    known = {row["model_type"]: row for row in json.loads(IMAGES.read_text())} if IMAGES.is_file() else {}
    for model_type in options.types or model_types():
        row = known[model_type] = _in_own_process(model_type, options.limit)
        print(f"{model_type:<28}{row['status']:<7} {row['form'] or row['why']}", flush=True)
        IMAGES.write_text(json.dumps([known[name] for name in sorted(known)], indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(images_page([known[name] for name in sorted(known)], TOLERANCE), encoding="utf-8")
    write_docs(["--report-only"])
    return int(any(row["status"] == "fails" for row in known.values()))


def _in_own_process(model_type: str, limit: float) -> dict[str, Any]:
    from .images import ImageRow

    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(model_type, sending))
    process.start()
    sending.close()
    row = ImageRow(model_type, "fails", f"no result within {limit:.0f} s").to_dict()
    try:
        if receiving.poll(limit):
            row = receiving.recv()
    except EOFError:
        row["why"] = "its process ended without a word"
    process.kill()
    process.join()
    return row


def _work(model_type: str, sending: Any) -> None:
    import torch
    from transformers.utils import logging

    from .images import run_case

    torch.set_num_threads(1)
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        sending.send(run_case(model_type, Path(folder)).to_dict())


if __name__ == "__main__":
    raise SystemExit(main())
