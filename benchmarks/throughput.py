"""Mixed lengths, from text: every CPU shape against every peer, in float32 and, for encoders, in int8.

    python benchmarks/throughput.py [--shapes minilm …] [--rounds 5] [--threads N] [--quick]

transformers' pipeline takes 32 texts at once, then one; `padded` and CrossEncoder 32, sorted by length; OpenVINO,
CTranslate2 and ONNX Runtime run sorted, at the batch size and the split of threads that are fastest for them.
A peer that is not installed is reported and left out.
"""

from __future__ import annotations

from _common import Results, arguments, parsed, peers

from vllm_cls.bench.options import BenchOptions
from vllm_cls.bench.shapes import SHAPES

INT8 = ("ctranslate2", "onnxruntime")


def main(given: list[str] | None = None) -> None:
    parser = arguments(__doc__, ["minilm", "bert-base", "gpt2", "qwen2-0.5b"])
    parser.add_argument("--precision", nargs="+", choices=["float32", "int8"], default=["float32", "int8"])
    options = parsed(parser, given, tiny=["tiny-bert", "tiny-qwen2"])
    results = Results("throughput", options)
    for shape in options.shapes:
        model = results.model(shape)
        for precision in options.precision:
            if precision == "float32":
                against = peers(shape, quick=options.quick)
                llm = {"dtype": "float32"}
            else:
                if not SHAPES[shape].encoder:
                    against = []
                else:
                    against = [f"{name}:8" if options.quick else name for name in INT8]
                llm = {"dtype": "float32", "quantization": "int8"}
            asked = BenchOptions(model, against=against, llm=llm, **results.common(shape))
            results.measure(f"{shape}, mixed lengths, {precision}", asked, shape=shape, precision=precision)


if __name__ == "__main__":
    main()
