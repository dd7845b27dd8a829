"""One query with each of 100 documents, as pairs: what a cross-encoder is for.

python benchmarks/rerank.py [--shapes minilm …] [--rounds 5] [--threads N] [--quick]
"""

from __future__ import annotations

from _common import Results, arguments, parsed

from vllm_cls.bench.options import BenchOptions

TEXTS = {"qwen2-0.5b": 24, "tiny-bert": 10, "tiny-qwen2": 10}


def main(given: list[str] | None = None) -> None:
    options = parsed(arguments(__doc__, ["minilm", "bert-base", "qwen2-0.5b"]), given, tiny=["tiny-bert", "tiny-qwen2"])
    results = Results("rerank", options)
    for shape in options.shapes:
        common = {**results.common(shape), "num_texts": TEXTS.get(shape)}
        asked = BenchOptions(
            results.model(shape), workload="rerank", against=["transformers", "padded", "sentence-transformers"],
            llm={"dtype": "float32"}, **common,
        )  # fmt: skip
        results.measure(f"{shape}, one query × documents", asked, shape=shape)


if __name__ == "__main__":
    main()
