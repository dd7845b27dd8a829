"""Typed questions, against transformers' decision pipeline: eight about one state of 300 tokens, and one a state.

    python benchmarks/decide.py [--shape qwen2-0.5b] [--rounds 5] [--threads 2] [--quick]

Contenders take turns, in float32, with random weights; states are new in each round. Before anything is timed, the answers are
compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as vllm-cls has it where it loads torch

import torch
import transformers
from _common import MODELS, RESULTS
from transformers.pipelines import DecisionPipeline

from vllm_cls import LLM
from vllm_cls.bench import vocabulary
from vllm_cls.bench.environment import environment
from vllm_cls.bench.interleave import interleave, ratio
from vllm_cls.bench.shapes import SHAPES

OURS, THEIRS = "vllm-cls", "transformers"
STATE_TOKENS, QUESTIONS, STATES = 300, 8, 16
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "we order box late cold send back money kind call ask help wait open door home work good bad new old".split()


def write_model(shape: str, folder: Path) -> Path:
    """A chat model of a shape with random weights, made once."""
    out, made = folder / f"{shape}-chat", SHAPES[shape]
    if (out / "config.json").is_file():
        return out
    tokenizer: Any = vocabulary.byte_level(made.vocab_size - 4, made.longest)
    tokenizer.add_tokens(["Yes", "No"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    config = transformers.AutoConfig.for_model(made.model_type, vocab_size=len(tokenizer), **made.values)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def question(rng: random.Random, place: int) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [
        {"type": "noul"},
        {"type": "choice", "criteria": {"calm": "polite", "angry": "rude", "sad": None}},
        {"type": "score", "criteria": ["can wait", "this week", "today"]},
    ]
    return {**kinds[place % 3], "instructions": text(rng, 8)}


def one_state(rng: random.Random) -> list[dict[str, Any]]:
    """Eight questions about one state."""
    return [
        {"state": text(rng, STATE_TOKENS), "questions": {f"q{each}": question(rng, each) for each in range(QUESTIONS)}}
    ]


def mixed(rng: random.Random) -> list[dict[str, Any]]:
    """One question a state, of 8 to 256 tokens."""
    lengths = [round(8 * 32 ** (each / (STATES - 1))) for each in range(STATES)]
    rng.shuffle(lengths)
    return [
        {"state": text(rng, length), "questions": {"q": question(rng, place)}} for place, length in enumerate(lengths)
    ]


def numbers(value: Any) -> list[float]:
    """All numbers of answers, in their order."""
    if isinstance(value, dict | list):
        return [number for each in (value.values() if isinstance(value, dict) else value) for number in numbers(each)]
    return [value] if isinstance(value, float) else []


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    folder = write_model(options.shape, options.folder)
    torch.set_num_threads(options.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pipeline = DecisionPipeline(model=model, tokenizer=transformers.AutoTokenizer.from_pretrained(folder))
    found = []
    with LLM(str(folder), convert="decide", dtype="float32", device="cpu", num_threads=options.threads) as llm:
        workloads: dict[str, Callable[[random.Random], list[dict[str, Any]]]] = {
            f"{QUESTIONS} questions about one state of {STATE_TOKENS} tokens": one_state,
            f"one question a state, {STATES} states of mixed lengths": mixed,
        }
        for title, make in workloads.items():
            requests = make(random.Random(0))
            ours, theirs = llm.decide(requests), [pipeline(each) for each in requests]
            difference = max(abs(a - b) for a, b in zip(numbers(ours), numbers(theirs), strict=True))
            assert difference < 1e-4, difference
            seeds = {OURS: iter(range(1, 1000)), THEIRS: iter(range(1, 1000))}

            def turn(name: str, run: Callable[[Any], Any], make: Any = make, seeds: Any = seeds) -> float:
                asked = make(random.Random(next(seeds[name])))
                llm.reset_prefix_cache()
                began = time.perf_counter()
                run(asked)
                return time.perf_counter() - began

            before = llm.counters
            times = interleave(
                {
                    OURS: lambda turn=turn: turn(OURS, llm.decide),
                    THEIRS: lambda turn=turn: turn(THEIRS, lambda asked: [pipeline(each) for each in asked]),
                },
                options.rounds,
            )
            ran = llm.counters
            found.append(
                {
                    "title": f"{options.shape}, {title}",
                    "environment": environment(options.threads),
                    "prompt_tokens": sum(each.num_prompt_tokens for each in ours),
                    "computed_tokens_a_round": (ran.num_tokens - before.num_tokens) / options.rounds,
                    "largest_difference": difference,
                    "seconds": {name: statistics.median(each) for name, each in times.items()},
                    "all_seconds": times,
                    "ratio": ratio(times[THEIRS], times[OURS]),
                }
            )
    return found


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen2-0.5b")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=MODELS, help="where the model is made")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run: a tiny model, two rounds; nothing is written"
    )
    options = parser.parse_args(given)
    if options.quick:
        options.rounds, options.shape = 2, "tiny-qwen2"
    found = measure(options)
    for each in found:
        ran, seconds = each["environment"], each["seconds"]
        print(f"{each['title']}: on {ran['cpu']}, {ran['threads']} threads")
        print(f"  {each['prompt_tokens']} prompt tokens, {each['computed_tokens_a_round']:.0f} computed")
        for name, took in seconds.items():
            print(f"  {name:<14}{took:8.3f} s")
        print(f"  {each['ratio']:.2f} × as fast; answers differ by at most {each['largest_difference']:.1e}")
    if not options.quick:
        options.results.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"command": "python benchmarks/decide.py", "results": found}, indent=1, ensure_ascii=False)
        (options.results / "decide.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
