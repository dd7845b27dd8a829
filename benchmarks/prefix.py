"""A prefix of 256 tokens that all texts share: prefix sharing on against off, beside the ratio of tokens.

python benchmarks/prefix.py [--shapes gpt2 …] [--rounds 5] [--threads N] [--quick]
"""

from __future__ import annotations

from _common import Results, arguments, parsed

from vllm_cls.bench.options import BenchOptions

TEXTS = {"gpt2": 96, "qwen2-0.5b": 24, "tiny-qwen2": 16}
PEERS = {"gpt2": [], "qwen2-0.5b": []}
"""Beside sharing off; `padded` would take three minutes a round of these shapes."""
OFF = "sharing off"


def main(given: list[str] | None = None) -> None:
    options = parsed(arguments(__doc__, ["gpt2", "qwen2-0.5b"]), given, tiny=["tiny-qwen2"])
    results = Results("prefix", options)
    for shape in options.shapes:
        common = {**results.common(shape), "num_texts": TEXTS.get(shape)}
        asked = BenchOptions(
            results.model(shape), workload="shared-prefix", against=PEERS.get(shape, ["padded"]), llm={"dtype": "float32"},
            variants={OFF: {"enable_prefix_caching": False}}, **common,
        )  # fmt: skip
        found = results.measure(f"{shape}, shared prefix", asked, shape=shape)
        if found is None:
            continue
        by_name = {each["name"]: each for each in found["contenders"]}
        on, off = by_name["vllm-cls"]["counters"], by_name[OFF]["counters"]
        if on.get("num_tokens"):
            ratio, tokens = by_name[OFF]["ratio"], off["num_tokens"] / on["num_tokens"]
            print(f"  sharing is {ratio:.2f} times as fast, on {tokens:.2f} times fewer tokens: {ratio / tokens:.2f}")


if __name__ == "__main__":
    main()
