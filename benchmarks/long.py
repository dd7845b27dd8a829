"""Long texts: 2,048 tokens each, or as many as the model takes.

python benchmarks/long.py [--shapes gpt2 …] [--rounds 5] [--threads N] [--quick]
"""

from __future__ import annotations

from _common import Results, arguments, parsed

from vllm_cls.bench.options import BenchOptions

TEXTS = {"bert-base": 8, "gpt2": 8, "qwen2-0.5b": 2}


def main(given: list[str] | None = None) -> None:
    options = parsed(arguments(__doc__, ["bert-base", "gpt2", "qwen2-0.5b"]), given, tiny=["tiny-bert", "tiny-qwen2"])
    results = Results("long", options)
    for shape in options.shapes:
        common = {**results.common(shape), "num_texts": TEXTS.get(shape, 4)}
        asked = BenchOptions(
            results.model(shape), workload="long", against=["transformers", "padded"], llm={"dtype": "float32"}, **common
        )  # fmt: skip
        results.measure(f"{shape}, long texts", asked, shape=shape)


if __name__ == "__main__":
    main()
