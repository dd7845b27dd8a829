"""`bench`: one benchmark, from its options to its report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import report
from .benchmark import Benchmark
from .options import BenchOptions


def bench(options: BenchOptions, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure a model, alone or against peers.

    Args:
        tell: called with a few words before each step.

    Returns:
        The report (`report.document` says what is in it).

    Raises:
        VclsError: ours cannot run, or a peer is unknown or missing.
    """
    with Benchmark(options, tell) as benchmark:
        return report.document(benchmark, benchmark.run())
