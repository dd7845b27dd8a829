"""How long a new process takes until its first text is classified, imports included.

    python benchmarks/startup.py [--quick] [--rounds 5] [--shapes bert-base qwen2-125m] [--folder DIR]

Whole processes take turns: `vcls classify`, `LLM`, and transformers' pipeline on the same folder and text; their
probabilities are compared first. Warm, the files are in memory from the turn before; cold, the system forgets
them before each turn, where that is permitted (root, Linux). Processor seconds are of all threads until the
process has ended.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from _common import arguments, parsed

from vllm_cls.bench.environment import environment
from vllm_cls.bench.shapes import SHAPES, Shape, write_model
from vllm_cls.runtime.machine.cores import usable_cores

TEXT = "hello"
TARGET = 6.0  # seconds, for a folder of 500 MB
SHAPES["qwen2-125m"] = Shape(
    "qwen2",
    {
        "hidden_size": 576, "num_hidden_layers": 12, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "max_position_embeddings": 32_768, "bos_token_id": None,
    },
    151_936,
    32_768,
)  # fmt: skip
CONTENDERS = {
    "vcls classify": "sys.argv[1:] = ['classify', sys.argv[1], '-', '-q']; from vllm_cls.cli.main import main; main()",
    "LLM": "from vllm_cls import LLM; (answer,) = LLM(sys.argv[1]).classify('hello'); "
    "print(json.dumps({'probs': answer.outputs.probs}), flush=True)",
    "transformers pipeline": "from transformers import pipeline; "
    "(answer,) = pipeline('text-classification', sys.argv[1], top_k=None)(['hello']); "
    "by_label = {each['label']: each['score'] for each in answer}; "
    "print(json.dumps({'probs': [by_label[label] for label in sorted(by_label)]}), flush=True)",
}
PEER = "transformers pipeline"


class Turn(NamedTuple):
    """One process: seconds until it printed its answer, processor seconds of all of it, the probabilities."""

    seconds: float
    cpu_seconds: float
    probs: list[float]


def turn(name: str, folder: str) -> Turn:
    """Run a contender in a new process."""
    # Bytecode of ours is kept, as an installation has it.
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before, began = os.times(), time.perf_counter()
    command = [sys.executable, "-c", f"import json, sys; {CONTENDERS[name]}", folder]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=variables, text=True
        )
        assert process.stdin is not None and process.stdout is not None
        with process:
            process.stdin.write(json.dumps({"text": TEXT}) + "\n")
            process.stdin.close()
            answer = next((line for line in process.stdout if line.startswith("{")), None)
            seconds = time.perf_counter() - began
        if process.returncode or answer is None:
            errors.seek(0)
            raise SystemExit(f"{name} failed:\n{errors.read()[-2000:]}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Turn(seconds, cpu, json.loads(answer)["probs"])


def forget_files() -> bool:
    """Empty the system's page cache; whether that was possible."""
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return False
    return True


def measure(folder: str, rounds: int, *, cold: bool) -> dict[str, Any]:
    """Medians of each contender and their ratios to transformers' pipeline."""
    turns: dict[str, list[Turn]] = {name: [] for name in CONTENDERS}
    for number in range(rounds):
        names = list(CONTENDERS)[:: 1 if number % 2 else -1]
        for name in names:
            if cold:
                forget_files()
            turns[name].append(turn(name, folder))
    expected = turns[PEER][0].probs
    found: dict[str, Any] = {}
    for name, each in turns.items():
        found[name] = {
            "seconds": [one.seconds for one in each],
            "cpu_seconds": [one.cpu_seconds for one in each],
            "median_seconds": statistics.median(one.seconds for one in each),
            "median_cpu_seconds": statistics.median(one.cpu_seconds for one in each),
            "largest_difference": max(abs(a - b) for one in each for a, b in zip(one.probs, expected, strict=True)),
        }
        pairs = zip(each, turns[PEER], strict=True)
        found[name]["ratio"] = statistics.median(one.seconds / peer.seconds for one, peer in pairs)
    return found


def show(title: str, found: dict[str, Any]) -> None:
    print(f"\n{title}: median of {len(found[PEER]['seconds'])} processes")
    for name, each in found.items():
        print(
            f"  {name:<24}{each['median_seconds']:6.2f} s  {min(each['seconds']):6.2f} s at best  "
            f"{each['median_cpu_seconds']:6.2f} s of processor  {each['ratio']:.2f} × {PEER}  "
            f"probabilities within {each['largest_difference']:.0e}",
            flush=True,
        )


def main(given: list[str] | None = None) -> None:
    options = parsed(arguments(__doc__, ["bert-base", "qwen2-125m"]), given, tiny=["tiny-bert"])
    ran_on = environment(options.threads or usable_cores())
    print(f"on {ran_on['cpu']}, {ran_on['cores']} cores, load {ran_on['load_average'][0]:.1f}; target {TARGET:.0f} s")
    options.folder.mkdir(parents=True, exist_ok=True)
    can_forget = forget_files()
    if not can_forget:
        print("the page cache cannot be emptied here (that takes root on Linux): warm only")
    documents = []
    for shape in options.shapes:
        folder = write_model(shape, options.folder)
        megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        for cold in [False, True] if can_forget else [False]:
            found = measure(str(folder), options.rounds, cold=cold)
            title = f"{shape}, {megabytes:.0f} MB, page cache {'cold' if cold else 'warm'}"
            show(title, found)
            command = " ".join(["python", *sys.argv])
            documents.append({
                "title": title, "command": command, "environment": ran_on, "rounds": options.rounds, "shape": shape,
                "megabytes": megabytes, "cold": cold, "contenders": found,
            })  # fmt: skip
            write(options.results / "startup.json", can_forget, documents)


def write(path: Path, can_forget: bool, documents: list[dict[str, Any]]) -> None:
    """All that is measured so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "load_average_after": os.getloadavg(), "page_cache_could_be_emptied": can_forget, "target_seconds": TARGET,
        "results": documents,
    }  # fmt: skip
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
