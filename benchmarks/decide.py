"""Typed questions against transformers' decision pipeline, and labels of the request against its zero-shot-classification.

    python benchmarks/decide.py [--shapes smollm2-135m qwen2-0.5b] [--nli-shapes minilm bert-base]
        [--rounds 5] [--threads 2] [--quick]

Eight questions about one state of 300 tokens, one question a state, and texts with eight candidate labels each. Contenders
take turns, in float32, with random weights; states and texts are new in each round. Before anything is timed, the answers are
compared. Beside the ratio of seconds stands that of processor time, which says less of who else uses the machine.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as vllm-cls has it where it loads torch

import torch
import transformers
from _common import MODELS, RESULTS, Results
from transformers.pipelines import DecisionPipeline, ZeroShotClassificationPipeline

from vllm_cls import LLM
from vllm_cls.bench import shapes, vocabulary
from vllm_cls.bench.environment import environment
from vllm_cls.bench.interleave import interleave, ratio
from vllm_cls.bench.shapes import SHAPES

OURS, THEIRS = "vllm-cls", "transformers"
STATE_TOKENS, QUESTIONS, STATES, TEXTS = 300, 8, 16, 8
LABELS = ("bug", "fee", "ad", "job", "tax", "pet", "law", "art")  # a token each, as in real vocabularies
CHAT = (  # Qwen2's: a system prompt before everything
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LETTERS = "abcdefghijk"  # every word of three of them is one token, whatever the shape


@dataclass(frozen=True)
class Contest:
    """One thing that both are asked.

    Args:
        make: what is asked in a round.
        run: by name, the numbers that a contender answers to it, in the same order as the other.
    """

    title: str
    llm: LLM
    make: Callable[[random.Random], list[Any]]
    run: Mapping[str, Callable[[Any], list[float]]]


def chat_model(shape: str, folder: Path) -> Path:
    """A chat model of a shape with random weights, made once."""
    out, made = folder / f"{shape}-chat-system", SHAPES[shape]
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


def nli_model(shape: str, folder: Path) -> Path:
    """A model of natural language inference of a shape with random weights, made once."""
    out = shapes.write_model(shape, folder / "nli", num_labels=3)
    config = transformers.AutoConfig.from_pretrained(out)
    config.id2label = dict(enumerate(("contradiction", "neutral", "entailment")))
    config.label2id = {label: index for index, label in config.id2label.items()}
    config.save_pretrained(out)
    return out


def text(rng: random.Random, tokens: int) -> str:
    return " ".join("".join(rng.choices(LETTERS, k=3)) for _ in range(tokens))


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
    return [
        {"state": each, "questions": {"q": question(rng, place)}}
        for place, each in enumerate(texts_of(rng, STATES, 8, 256))
    ]


def texts_of(rng: random.Random, count: int, shortest: int, longest: int) -> list[str]:
    """Texts of so many tokens, each longer than the one before by the same factor, in any order."""
    lengths = [round(shortest * (longest / shortest) ** (each / (count - 1))) for each in range(count)]
    rng.shuffle(lengths)
    return [text(rng, length) for length in lengths]


def numbers(value: Any) -> list[float]:
    """All numbers of answers, in their order."""
    if isinstance(value, dict | list):
        return [number for each in (value.values() if isinstance(value, dict) else value) for number in numbers(each)]
    return [value] if isinstance(value, float) else []


def decisions(folder: Path, title: str, threads: int) -> Iterator[Contest]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pipeline = DecisionPipeline(model=model, tokenizer=transformers.AutoTokenizer.from_pretrained(folder))
    with LLM(str(folder), convert="decide", dtype="float32", device="cpu", num_threads=threads) as llm:
        run = {
            OURS: lambda asked: numbers(llm.decide(asked)),
            THEIRS: lambda asked: numbers([pipeline(each) for each in asked]),
        }
        yield Contest(f"{title}, {QUESTIONS} questions about one state of {STATE_TOKENS} tokens", llm, one_state, run)
        yield Contest(f"{title}, one question a state, {STATES} states of mixed lengths", llm, mixed, run)


def zero_shot(folder: Path, title: str, threads: int) -> Iterator[Contest]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    pipeline = ZeroShotClassificationPipeline(model=model, tokenizer=transformers.AutoTokenizer.from_pretrained(folder))

    def theirs(texts: list[str]) -> list[float]:
        found = [dict(zip(each["labels"], each["scores"], strict=True)) for each in pipeline(texts, LABELS)]
        return [each[label] for each in found for label in LABELS]

    with LLM(str(folder), dtype="float32", device="cpu", num_threads=threads) as llm:

        def ours(texts: list[str]) -> list[float]:
            return numbers([each.outputs.probs for each in llm.classify(texts, candidate_labels=LABELS)])

        yield Contest(
            f"{title}, {len(LABELS)} candidate labels, {TEXTS} texts of mixed lengths",
            llm,
            lambda rng: texts_of(rng, TEXTS, 8, 128),
            {OURS: ours, THEIRS: theirs},
        )


def measure(contest: Contest, options: argparse.Namespace) -> dict[str, Any]:
    """Compare the answers, then let both take turns."""
    llm, first = contest.llm, contest.make(random.Random(0))
    found = {name: run(first) for name, run in contest.run.items()}
    difference = max(abs(a - b) for a, b in zip(*found.values(), strict=True))
    assert difference < 1e-4, difference
    processor: dict[str, list[float]] = {name: [] for name in contest.run}

    def turn(name: str) -> float:
        asked = contest.make(random.Random(1 + len(processor[name])))
        llm.reset_prefix_cache()
        began, busy = time.perf_counter(), time.process_time()
        contest.run[name](asked)
        took = time.perf_counter() - began
        processor[name].append(time.process_time() - busy)
        return took

    before = llm.counters
    seconds = interleave({name: functools.partial(turn, name) for name in contest.run}, options.rounds)
    ran = llm.counters - before
    return {
        "title": contest.title,
        "environment": environment(options.threads),
        "prompt_tokens": ran.num_prompt_tokens / options.rounds,
        "computed_tokens": ran.num_tokens / options.rounds,
        "largest_difference": difference,
        "seconds": {name: statistics.median(each) for name, each in seconds.items()},
        "all_seconds": seconds,
        "ratio": ratio(seconds[THEIRS], seconds[OURS]),
        "processor_seconds": processor,
        "processor_ratio": ratio(processor[THEIRS], processor[OURS]),
    }


def show(found: dict[str, Any]) -> None:
    ran = found["environment"]
    print(f"{found['title']}: on {ran['cpu']}, {ran['threads']} threads")
    print(f"  {found['prompt_tokens']:.0f} prompt tokens, {found['computed_tokens']:.0f} computed")
    for name, took in found["seconds"].items():
        print(f"  {name:<14}{took:8.3f} s")
    print(f"  {found['ratio']:.2f} × as fast, {found['processor_ratio']:.2f} × by processor time; ", end="")
    print(f"answers differ by at most {found['largest_difference']:.1e}", flush=True)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="*", choices=list(SHAPES), default=["smollm2-135m", "qwen2-0.5b"], help="of the chat models"
    )
    parser.add_argument(
        "--nli-shapes",
        nargs="*",
        choices=list(SHAPES),
        default=["minilm", "bert-base"],
        help="of the models for labels",
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=MODELS, help="where the models are made")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument("--quick", action="store_true", help="a smoke run: tiny models, two rounds")
    options = parser.parse_args(given)
    if options.quick:
        options.rounds, options.shapes, options.nli_shapes = 2, ["tiny-qwen2"], ["tiny-bert"]
        options.results = MODELS / "quick"
    torch.set_num_threads(options.threads)
    results = Results("decide", options)
    for contests in (
        *(decisions(chat_model(each, options.folder), each, options.threads) for each in options.shapes),
        *(zero_shot(nli_model(each, options.folder), each, options.threads) for each in options.nli_shapes),
    ):
        for contest in contests:
            found = measure(contest, options)
            show(found)
            results.keep({"command": "python benchmarks/decide.py", **found})


if __name__ == "__main__":
    main()
