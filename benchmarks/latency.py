"""One short text alone: how long a call takes, from text to logits, beside the others with the same text.

    python benchmarks/latency.py [--shapes minilm bert-base] [--rounds 50] [--threads N] [--quick]

A turn is one call with one text. `python -m benchmarks.server.speed` says what HTTP adds.
"""

from __future__ import annotations

from _common import Results, arguments, parsed

from vllm_cls.bench.options import BenchOptions
from vllm_cls.bench.shapes import SHAPES

LENGTHS = (8, 64)


def main(given: list[str] | None = None) -> None:
    parser = arguments(__doc__, ["minilm", "bert-base"])
    parser.set_defaults(rounds=50)
    options = parsed(parser, given, tiny=["tiny-bert"])
    results = Results("latency", options)
    for shape in options.shapes:
        against = [
            "transformers:1",
            *(("openvino:1", "onnxruntime:1", "ctranslate2:1") if SHAPES[shape].encoder else ()),
        ]
        for tokens in LENGTHS:
            common = {**results.common(shape), "num_texts": 1}
            asked = BenchOptions(
                results.model(shape), lengths=(tokens, 0.0), against=against, llm={"dtype": "float32"}, **common
            )
            results.measure(f"{shape}, one text of {tokens} tokens", asked, shape=shape, tokens=tokens)


if __name__ == "__main__":
    main()
