"""The machine's matrix multiplication speed for a model's linear layers: the denominator of model FLOPs utilization."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ..runtime.layers.prepacking import packed_linear

_SECONDS = 0.03  # of one measurement of one shape in one form, at least
Product = Callable[[], Any]


class MatrixSpeed:
    """Products `(rows, inputs) × (inputs, outputs)` of the shapes that a model has, weighted by how many it has.

    On a CPU each shape runs in two forms, and the better one counts: one product with all threads, and as many
    products at once as there are threads, each with one. It has to be in a process of its own, since it sets torch's
    threads.

    Args:
        shapes: `(inputs, outputs)` → how many layers have it.
        rows: tokens of one forward.
        threads: on a CPU.
    """

    def __init__(
        self, shapes: Mapping[tuple[int, int], int], *, rows: int, threads: int, dtype: str, device: str
    ) -> None:
        self.shapes, self.rows, self.threads = dict(shapes), rows, threads
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        self.forms: dict[str, str] = {}
        self._pool = ThreadPoolExecutor(threads)
        self._products = {shape: self._make(*shape) for shape in shapes}

    def measure(self) -> float:
        """GFLOP/s: the multiply-adds of one token through all layers, counted twice, by the time they take."""
        operations = seconds = 0.0
        for (inputs, outputs), count in self.shapes.items():
            flops = 2.0 * self.rows * inputs * outputs
            one, each = self._joint((inputs, outputs)), self._parallel((inputs, outputs))
            self.forms[f"{inputs}×{outputs}"] = f"{flops / min(one, each) / 1e9:.0f} GFLOP/s, " + (
                f"one product, {self.threads} threads" if one <= each else f"{self.threads} products, one thread each"
            )
            operations += count * flops
            seconds += count * min(one, each)
        return operations / seconds / 1e9 if seconds else 0.0

    def close(self) -> None:
        self._pool.shutdown()

    def _make(self, inputs: int, outputs: int) -> list[Product]:
        """One product a thread, each with rows of its own; they share the weight."""
        weight = torch.randn(outputs, inputs, device=self.device, dtype=self.dtype)
        products: list[Product] = []
        for _ in range(self.threads):
            rows = torch.randn(self.rows, inputs, device=self.device, dtype=self.dtype)
            products.append(functools.partial(self._product(weight), rows))
        return products

    def _product(self, weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """By the kernel that the runtime takes here."""
        if self.device.type == "cpu" and self.dtype == torch.float32:
            return packed_linear(weight, None)
        return lambda rows: torch.nn.functional.linear(rows, weight)

    def _joint(self, shape: tuple[int, int]) -> float:
        """Seconds of one product with all threads."""
        torch.set_num_threads(self.threads)
        return self._timed(self._products[shape][0])

    def _parallel(self, shape: tuple[int, int]) -> float:
        """Seconds of one product, where each thread has one at the same time."""
        if self.device.type != "cpu" or self.threads == 1:
            return float("inf")
        start = threading.Barrier(self.threads)

        def seconds_of(product: Product) -> float:
            torch.set_num_threads(1)  # of OpenMP for this thread, of MKL for the whole process
            start.wait()
            return self._timed(product)

        return max(self._pool.map(seconds_of, self._products[shape])) / self.threads

    @torch.inference_mode()
    def _timed(self, product: Product) -> float:
        product()
        repeats = 1
        while True:
            self._wait()
            began = time.perf_counter()
            for _ in range(repeats):
                product()
            self._wait()
            seconds = time.perf_counter() - began
            if seconds >= _SECONDS:
                return seconds / repeats
            repeats = max(repeats + 1, int(1.2 * repeats * _SECONDS / max(seconds, 1e-9)))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
