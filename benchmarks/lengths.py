"""Throughput by length distribution: from texts of one length to very mixed ones, short and long.

    python benchmarks/lengths.py [--shapes minilm] [--rounds 5] [--threads N] [--quick]

`python benchmarks/plot.py` draws it.
"""

from __future__ import annotations

from _common import Results, arguments, parsed

from vllm_cls.bench.options import BenchOptions

DISTRIBUTIONS = ((16, 0.0), (64, 0.0), (256, 0.0), (40, 0.5), (40, 0.9), (40, 1.3), (120, 0.9))
"""(median in tokens, sigma of the lognormal distribution); sigma 0: all of one length."""


def main(given: list[str] | None = None) -> None:
    options = parsed(arguments(__doc__, ["minilm"]), given, tiny=["tiny-bert"])
    results = Results("lengths", options)
    for shape in options.shapes:
        model = results.model(shape)
        for median, sigma in DISTRIBUTIONS[:2] if options.quick else DISTRIBUTIONS:
            asked = BenchOptions(
                model, lengths=(median, sigma), against=["transformers", "padded"], llm={"dtype": "float32"},
                **results.common(shape),
            )  # fmt: skip
            title = f"{shape}, median {median}, sigma {sigma:g}"
            results.measure(title, asked, shape=shape, median=median, sigma=sigma)


if __name__ == "__main__":
    main()
