"""What the benchmarks share: options, models, printing, `results/NAME.json`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm_cls.bench.options import BenchOptions
from vllm_cls.bench.run import bench
from vllm_cls.bench.shapes import SHAPES, write_model
from vllm_cls.errors import VclsError

RESULTS = Path(__file__).parent / "results"
MODELS = Path(tempfile.gettempdir()) / "vllm-cls-benchmarks"
TEXTS = {"minilm": 192, "bert-base": 32, "gpt2": 48, "qwen2-0.5b": 16}
"""Texts of a run with mixed lengths: a second or a few of each."""


def arguments(text: str | None, shapes: Sequence[str]) -> argparse.ArgumentParser:
    """A parser with the options that all have.

    Args:
        text: the script's docstring.
        shapes: measured unless others are named.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(shapes), metavar="SHAPE")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--threads", type=int, help="of each contender; else the physical cores")
    parser.add_argument("--folder", type=Path, default=MODELS, help=f"where the models are made and kept: {MODELS}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument("--quick", action="store_true", help="a smoke run: tiny models, few texts, two rounds")
    return parser


def parsed(parser: argparse.ArgumentParser, given: list[str] | None, *, tiny: Sequence[str]) -> argparse.Namespace:
    """The options; `--quick` takes the tiny shapes and two rounds, and keeps its results apart."""
    options = parser.parse_args(given)
    if options.quick:
        options.rounds = 2
        if options.shapes == parser.get_default("shapes"):
            options.shapes = list(tiny)
        if options.results == RESULTS:
            options.results = MODELS / "quick"
    return options


class Results:
    """The documents of one script, one a title. Each is written as it comes, and replaces the one of its title.

    So a run that is cut short leaves what it has, and a shape can be measured again alone.

    Args:
        name: of the file.
        options: what `parsed` gave.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.path, self.options = options.results / f"{name}.json", options
        kept = json.loads(self.path.read_text(encoding="utf-8"))["results"] if self.path.exists() else []
        self.documents: dict[str, dict[str, Any]] = {each["title"]: each for each in kept}

    def measure(self, title: str, options: BenchOptions, **extra: Any) -> dict[str, Any] | None:
        """Run one benchmark, print it, keep it; None where ours cannot run, which is printed."""
        print(f"\n== {title}", flush=True)
        try:
            found = bench(options, _tell())
        except VclsError as error:
            print(f"skipped: {error}", flush=True)
            return None
        command = " ".join(["python", *sys.argv])
        show(found)
        self.keep({"title": title, "command": command, **extra, **found})
        return found

    def keep(self, document: dict[str, Any]) -> None:
        """Write a document in place of the one of its title."""
        self.documents[document["title"]] = document
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"results": list(self.documents.values())}
        self.path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def model(self, shape: str, **options: Any) -> str:
        """The folder of a shape's model, made at its first use."""
        self.options.folder.mkdir(parents=True, exist_ok=True)
        return str(write_model(shape, self.options.folder, **options))

    def common(self, shape: str) -> dict[str, Any]:
        """Options of `BenchOptions` that follow from the command line."""
        count = 16 if self.options.quick else TEXTS.get(shape)
        return {
            "rounds": self.options.rounds, "threads": self.options.threads, "num_texts": count, "skip_missing": True,
        }  # fmt: skip


def peers(shape: str, *, quick: bool) -> list[str]:
    """Whom a shape is measured against on a CPU, in float32."""
    found = ["transformers", "transformers:1", "padded", "sentence-transformers"]
    if SHAPES[shape].encoder:
        found += [f"{name}:8" if quick else name for name in ("openvino", "ctranslate2", "onnxruntime")]
    return found


def show(found: dict[str, Any]) -> None:
    """One document as a few lines."""
    ran, work, ours = found["environment"], found["workload"], found["ours"]
    print(f"on {ran['cpu']}, {ran['device']}, {ran['threads']} threads; {work['texts']} texts, {work['tokens']} tokens")
    for each in found["contenders"]:
        if each["error"] is not None:
            print(f"  {each['name']:<24}{each['error']}")
        elif not each["seconds"]:
            print(f"  {each['name']:<24}not timed: its outputs differ ({each['agreement']})")
        else:
            relative = f"{each['ratio']:.2f} × our time" if "ratio" in each else ""
            print(f"  {each['name']:<24}{each['tokens_per_second']:>10,.0f} tokens/s  {relative}")
    print(f"  useful share {ours['useful_share']:.2f}, model share {ours['model_share']:.2f}", end="")
    print(f" of {found['matrix']['gflops']:.0f} GFLOP/s; {ours['counters']}", flush=True)
    if found["int8"] is not None:
        print(f"  int8 against float32: {found['int8']}", flush=True)


def _tell() -> Callable[[str], None]:
    """Progress on stderr, where somebody watches."""
    if not sys.stderr.isatty():
        return lambda text: None
    return lambda text: print(f"\r\033[K{text}", end="\r", file=sys.stderr, flush=True)
