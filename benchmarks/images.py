"""Eight questions about one image: asked one by one, with the image encoded once, and with its tokens run once too.

    python benchmarks/images.py [--rounds 5] [--threads N] [--quick]

The model has Qwen2.5-VL's parts, cut small, and random weights. Contenders take turns; a round has an image of its own, which
nobody has seen. The counted ratio is that of the tokens that run: what sharing could give if nothing else took time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as vllm-cls has it where it loads torch

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import vllm_cls
from vllm_cls import LLM
from vllm_cls.bench.environment import environment
from vllm_cls.bench.interleave import interleave

RESULTS = Path(__file__).parent / "results" / "images.json"
SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<unk>")
WORDS = [f"word{number}" for number in range(500)]
QUESTIONS, QUESTION_WORDS = 8, 16
ALONE, ENCODED, SHARED = "each alone", "image encoded once", "prefix shared too"
# The same two once more with the image's features at hand: what sharing the prefix gives by itself.
TEXT_ENCODED, TEXT_SHARED = "language part", "language part, shared"


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--threads", type=int, help="else the physical cores")
    parser.add_argument(
        "--folder", type=Path, default=Path("/tmp/vllm-cls-benchmarks/images"), help="where the model is made"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run: a tiny model, two rounds; nothing is written"
    )
    options = parser.parse_args(given)
    if options.quick:
        options.rounds = 2
    found = measure(
        options.folder / ("quick" if options.quick else "model"), options.rounds, options.threads, options.quick
    )
    for name, each in found["contenders"].items():
        print(
            f"{name:<24}{each['seconds']:8.3f} s {each['ratio']:6.2f} ×, {each['num_tokens']} tokens, {each['num_encoded']} images"
        )
    print(
        f"prefix shared, the language part alone: {found['language_ratio']:.2f} ×, of {found['counted_ratio']:.2f} × counted: "
        f"{found['reuse']:.2f}"
    )
    if not options.quick:
        options.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, rounds: int, threads: int | None, quick: bool) -> dict[str, Any]:
    """The medians of each contender, and what they are of the first one's."""
    model = write_model(folder, quick)
    rng = np.random.default_rng(0)
    questions = [" ".join(rng.choice(WORDS, QUESTION_WORDS)) for _ in range(QUESTIONS)]
    side = 112 if quick else 448
    with (
        LLM(str(model), dtype="float32", num_threads=threads) as sharing,
        LLM(str(model), dtype="float32", num_threads=threads, enable_prefix_caching=False) as plain,
    ):
        turns = {
            ALONE: (plain, True, False), ENCODED: (plain, False, False), SHARED: (sharing, False, False),
            TEXT_ENCODED: (plain, False, True), TEXT_SHARED: (sharing, False, True),
        }  # fmt: skip
        counters = {}
        logits: dict[str, Any] = {}

        def turn(name: str) -> float:
            llm, alone, warm = turns[name]
            prompts = [about(image, each) for each in questions]
            if not warm:
                llm.reset_mm_cache()
            llm.reset_prefix_cache()
            before, began, rows = llm.counters, time.perf_counter(), []
            for part in [[each] for each in prompts] if alone else [prompts]:
                if alone:
                    llm.reset_mm_cache()
                rows += [output.outputs.logits for output in llm.classify(part, use_tqdm=False)]
            seconds = time.perf_counter() - began
            counters[name], logits[name] = llm.counters - before, torch.tensor(rows)
            return seconds

        image = picture(side, rng)
        for name in turns:  # what is chosen, compiled or allocated when the first image comes
            turn(name)

        def on_turn(number: int, name: str) -> None:
            nonlocal image
            if name == ALONE:
                image = picture(side, rng)

        times = interleave({name: lambda name=name: turn(name) for name in turns}, rounds, on_turn)  # type: ignore[misc]
    for name in set(turns) - {ALONE}:
        torch.testing.assert_close(logits[name], logits[ALONE], atol=1e-4, rtol=1e-4)
    medians = {name: statistics.median(each) for name, each in times.items()}
    contenders = {
        name: {
            "seconds": medians[name],
            "all_seconds": times[name],
            "ratio": statistics.median(a / b for a, b in zip(times[ALONE], times[name], strict=True)),
            "num_tokens": counters[name].num_tokens,
            "num_encoded": counters[name].num_encoded,
        }
        for name in turns
    }
    counted = contenders[ENCODED]["num_tokens"] / contenders[SHARED]["num_tokens"]
    gained = statistics.median(a / b for a, b in zip(times[TEXT_ENCODED], times[TEXT_SHARED], strict=True))
    return {
        "command": "python benchmarks/images.py",
        "environment": environment(threads or torch.get_num_threads()),
        "questions": QUESTIONS,
        "image": [side, side],
        "contenders": contenders,
        "counted_ratio": counted,
        "language_ratio": gained,
        "reuse": gained / counted,
    }


def about(image: Image.Image, question: str) -> dict[str, Any]:
    """A question behind an image."""
    return {"prompt": f"<|vision_start|><|image_pad|><|vision_end|> {question}", "multi_modal_data": {"image": image}}


def picture(side: int, rng: np.random.Generator) -> Image.Image:
    """Random colours."""
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def write_model(folder: Path, quick: bool) -> Path:
    """A classifier with Qwen2.5-VL's parts, made once."""
    if (folder / "classifier" / "config.json").is_file():
        return folder / "classifier"
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(each, special=True) for each in SPECIAL[:4]]}
    )
    width, depth = (64, 2) if quick else (512, 8)
    half = width // 16  # of the width of a head
    sections = [half // 4, (half - half // 4) // 2, half - half // 4 - (half - half // 4) // 2]
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": 8, "num_key_value_heads": 2,
            "intermediate_size": 4 * width, "vocab_size": len(vocabulary), "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6,
                "mrope_section": sections,
            },
            "pad_token_id": 4, "bos_token_id": None, "eos_token_id": None,
        },
        vision_config={
            "depth": depth, "hidden_size": width // 2, "num_heads": 8, "intermediate_size": 2 * width,
            "out_hidden_size": width, "fullatt_block_indexes": [depth - 1],
        },
        vision_start_token_id=0, vision_end_token_id=1, image_token_id=2, video_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    Qwen2VLImageProcessorPil().save_pretrained(folder / "lm")
    vllm_cls.convert(str(folder / "lm"), folder / "classifier", head="random", num_labels=3, seed=0)
    return folder / "classifier"


if __name__ == "__main__":
    main()
