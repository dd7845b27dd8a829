"""The matrix products of one encoder layer by every kernel that there is here, one thread, in GFLOP/s.

    python benchmarks/products.py [--shapes minilm …] [--rounds 20]

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 python benchmarks/products.py

The second keeps a processor with AVX-512 to AVX2. Kernels take turns, and the least time of the thread counts (processor
time, not the clock's), so that other work on the machine hardly shows.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable

import torch
from _common import Results, arguments, parsed

from vllm_cls.bench.environment import environment
from vllm_cls.bench.shapes import SHAPES
from vllm_cls.runtime.layers import prepacking, quantization

_ROWS = 512
Compute = Callable[[], object]


def main(given: list[str] | None = None) -> None:
    options = parsed(arguments(__doc__, ["minilm", "bert-base"]), given, tiny=["tiny-bert"])
    results, instructions = Results("products", options), torch.backends.cpu.get_cpu_capability()
    torch.set_num_threads(1)
    for shape in options.shapes:
        layers = [
            {
                "layer": name,
                "inputs": inputs,
                "outputs": outputs,
                "gflops": measured(inputs, outputs, gelu, options.rounds),
            }
            for name, inputs, outputs, gelu in layers_of(shape)
        ]
        for each in layers:
            print(shape, instructions, each, flush=True)
        results.keep({
            "title": f"{shape}, {instructions}", "command": " ".join(["python", *sys.argv]), "shape": shape,
            "instructions": instructions, "rounds": options.rounds, "statistic": "least times", "rows": _ROWS,
            "layers": layers, "environment": environment(1),
        })  # fmt: skip


def layers_of(shape: str) -> list[tuple[str, int, int, str | None]]:
    """Name, inputs, outputs and the GELU that follows, of each product of a layer."""
    hidden, inner = (SHAPES[shape].values[name] for name in ("hidden_size", "intermediate_size"))
    return [
        ("queries, keys, values", hidden, 3 * hidden, None), ("attention's output", hidden, hidden, None),
        ("first of the feed-forward, GELU", hidden, inner, "none"), ("second of the feed-forward", inner, hidden, None),
    ]  # fmt: skip


@torch.inference_mode()
def measured(inputs: int, outputs: int, gelu: str | None, rounds: int) -> dict[str, float]:
    """GFLOP/s of each kernel."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*size, generator=generator) for size in ((_ROWS, inputs), (outputs, inputs), (outputs,))
    )
    computes: dict[str, Compute] = {
        f"float32, {name}": functools.partial(make(weight, bias, gelu), x)
        for name, make in prepacking.kernels().items()
    }
    integers = weight.mul(30).round_().clamp_(-64, 64).to(torch.int8)
    q = torch.randint(256, (_ROWS, inputs), dtype=torch.uint8, generator=generator)
    ones, one_a_row = torch.ones(outputs), torch.ones(_ROWS, 1)
    for name, product in quantization.products().items():
        made = product(integers, ones, ones, bias, gelu is not None)
        computes[f"int8, {name}"] = functools.partial(made, q, one_a_row, one_a_row)
    seconds = dict.fromkeys(computes, float("inf"))
    for _ in range(rounds):
        for name, compute in computes.items():
            began = time.thread_time()
            compute()
            seconds[name] = min(seconds[name], time.thread_time() - began)
    return {name: round(2e-9 * _ROWS * inputs * outputs / least, 1) for name, least in seconds.items()}


if __name__ == "__main__":
    main()
