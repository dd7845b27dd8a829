"""A model on one process and on several: tokens a second, and how many times as fast as one process with a part of the cores.

    python benchmarks/parallel.py [--shapes qwen2-60m] [--rounds 5] [--threads N] [--processes 2] [--quick]

The threads are shared out among the processes. Each way is opened once, tried against the logits of the first, and timed for
all its rounds in a row, since a process holds one model that is spread.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from typing import Any

from _common import arguments, parsed

from vllm_cls import LLM
from vllm_cls.bench.environment import environment
from vllm_cls.bench.shapes import SHAPES, Shape, write_model
from vllm_cls.runtime.machine.cores import usable_cores

BATCH_TOKENS = 256
SHAPES["qwen2-60m"] = Shape(
    "qwen2",
    {
        "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 2,
        "intermediate_size": 2048, "max_position_embeddings": 4096, "bos_token_id": None,
    },
    32_000,
    4096,
)  # fmt: skip


def prompts(shape: str, count: int) -> list[dict[str, list[int]]]:
    """Prompts of 16 to 128 random tokens."""
    draw = random.Random(0)
    last = SHAPES[shape].vocab_size - 1
    return [{"prompt_token_ids": [draw.randint(8, last) for _ in range(draw.randint(16, 128))]} for _ in range(count)]


def measure(
    model: str, asked: list[Any], rounds: int, options: dict[str, Any]
) -> tuple[list[float], list[list[float]]]:
    """Seconds of each round, and the probabilities."""
    with LLM(model, device="cpu", dtype="float32", max_num_batched_tokens=BATCH_TOKENS, **options) as llm:
        found = [each.outputs.probs for each in llm.classify(asked)]
        seconds = []
        for _ in range(rounds):
            llm.reset_prefix_cache()
            began = time.perf_counter()
            llm.classify(asked)
            seconds.append(time.perf_counter() - began)
    return seconds, found


def main(given: list[str] | None = None) -> None:
    parser = arguments(__doc__, ["qwen2-60m"])
    parser.add_argument("--processes", type=int, default=2)
    options = parsed(parser, given, tiny=["tiny-qwen2"])
    threads, size = options.threads or usable_cores(), options.processes
    ways: dict[str, dict[str, Any]] = {
        f"one process, {threads // size} of {threads} threads": {"num_threads": threads // size},
        f"one process, {threads} threads": {"num_threads": threads},
        f"tensor parallel, {size} processes": {"num_threads": threads, "tensor_parallel_size": size},
        f"pipeline parallel, {size} processes": {"num_threads": threads, "pipeline_parallel_size": size},
    }
    documents = []
    options.folder.mkdir(parents=True, exist_ok=True)
    for shape in options.shapes:
        model, asked = str(write_model(shape, options.folder)), prompts(shape, 16 if options.quick else 32)
        tokens, first = sum(len(each["prompt_token_ids"]) for each in asked), None
        document: dict[str, Any] = {"shape": shape, "tokens": tokens, "environment": environment(threads), "ways": []}
        print(f"\n== {shape}: {len(asked)} prompts, {tokens} tokens", flush=True)
        for name, more in ways.items():
            seconds, found = measure(model, asked, options.rounds, more)
            first = first or found
            error = max(
                abs(a - b) for row, other in zip(found, first, strict=True) for a, b in zip(row, other, strict=True)
            )
            median = statistics.median(seconds)
            way = {"name": name, "seconds": seconds, "tokens_per_second": tokens / median, "largest_difference": error}
            way["times_as_fast"] = way["tokens_per_second"] / (document["ways"] or [way])[0]["tokens_per_second"]
            document["ways"].append(way)
            print(
                f"  {name:<40}{tokens / median:>10,.0f} tokens/s  {way['times_as_fast']:.2f}  {error:.0e}", flush=True
            )
        documents.append(document)
    options.results.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"results": documents}, indent=1, ensure_ascii=False)
    (options.results / "parallel.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
