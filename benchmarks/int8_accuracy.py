"""What int8 changes of real models' results: labels changed, and the largest change of a probability.

    make demo                                   # and README's commands of "Label tokens", for SmolLM2
    python benchmarks/int8_accuracy.py [--demo demo] [--rounds 1] [--num-texts N]

All rows of the test files run in float32 and in int8.
"""

from __future__ import annotations

from pathlib import Path

from _common import Results, arguments, parsed

from vllm_cls.bench.options import BenchOptions

MODELS = (
    ("injection-classifier", "test.jsonl", "make demo"),
    ("injection2-classifier", "injection2_test.jsonl", "the commands of README's 'Convert'"),
    ("sentiment-zero-shot", "movies_test.jsonl", "the commands of README's 'Label tokens'"),
    ("sentiment-fitted", "movies_test.jsonl", "the commands of README's 'Label tokens'"),
)
"""A folder of a classifier, its test file, and what makes them."""


def main(given: list[str] | None = None) -> None:
    parser = arguments(__doc__, [])
    parser.set_defaults(rounds=1)
    parser.add_argument(
        "--demo", type=Path, default=Path(__file__).parent.parent / "demo", help="what make demo leaves"
    )
    parser.add_argument("--num-texts", type=int, default=1_000_000, help="rows at most")
    options = parsed(parser, given, tiny=[])
    results = Results("int8_accuracy", options)
    for name, rows, made_by in MODELS:
        model, file = options.demo / name, options.demo / rows
        if not (model.exists() and file.exists()):
            print(f"\n== {name}\nskipped: {model} or {file} is not there; make it with {made_by}", flush=True)
            continue
        asked = BenchOptions(
            str(model), input=str(file), num_texts=32 if options.quick else options.num_texts, rounds=options.rounds,
            threads=options.threads, llm={"dtype": "float32", "quantization": "int8"},
        )  # fmt: skip
        results.measure(f"{name}, {rows}", asked, shape=name, precision="int8")


if __name__ == "__main__":
    main()
