"""Mixed lengths on a GPU, bfloat16: Qwen2-1.5B and 7B shapes against transformers, padded and sorted, and vLLM.

    python benchmarks/gpu.py [--shapes qwen2-1.5b …] [--rounds 5] [--device cuda] [--num-texts 2048] [--quick]

Without a CUDA device it says so and ends.
"""

from __future__ import annotations

from _common import Results, arguments, parsed

from vllm_cls.bench.options import BenchOptions


def main(given: list[str] | None = None) -> None:
    parser = arguments(__doc__, ["qwen2-1.5b", "qwen2-7b"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--num-texts", type=int, default=2048)
    parser.add_argument("--vllm-python", metavar="PATH", help="interpreter of the environment that vLLM is in")
    options = parsed(parser, given, tiny=["tiny-qwen2"])
    import torch

    if not torch.cuda.is_available():
        print("skipped: there is no CUDA device here")
        return
    results = Results("gpu", options)
    python = {"vllm": options.vllm_python} if options.vllm_python else {}
    for shape in options.shapes:
        common = {**results.common(shape), "num_texts": 64 if options.quick else options.num_texts}
        asked = BenchOptions(
            results.model(shape, dtype="bfloat16", device=options.device), against=["transformers", "padded", "vllm"],
            llm={"dtype": "bfloat16", "device": options.device}, python=python, **common,
        )  # fmt: skip
        results.measure(f"{shape}, mixed lengths, bfloat16", asked, shape=shape)


if __name__ == "__main__":
    main()
