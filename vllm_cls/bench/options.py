"""The options of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ..jobs.rows import PromptFields
from .workloads import MEDIAN, NAMES, SIGMA


@dataclass(frozen=True)
class BenchOptions:
    """The options of `bench`.

    Args:
        model: a folder, a hub id or a `.gguf` file.
        input: a file of rows; None takes `workload`.
        workload: one of `workloads.NAMES`.
        against: peers, as `peers.parse` reads them.
        lengths: of the workload "mixed": median in tokens, and sigma.
        rounds: turns of each contender.
        num_texts: texts of the workload, or at most so many rows of `input`.
        threads: on a CPU, for every contender; None takes the usable cores.
        llm: options of `LLM`, as `vcls classify` has them.
        variants: label → options of `LLM` that replace those, each a contender of its own.
        python: peer → interpreter of the virtual environment that it is installed in.
        skip_missing: leave a peer out that is not installed, and say so, instead of refusing.
    """

    model: str
    input: str | None = None
    workload: str = "mixed"
    lengths: tuple[float, float] = (MEDIAN, SIGMA)
    against: Sequence[str] = ()
    rounds: int = 5
    num_texts: int | None = None
    fields: PromptFields = field(default_factory=PromptFields)
    threads: int | None = None
    llm: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    python: Mapping[str, str] = field(default_factory=dict)
    skip_missing: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"rounds={self.rounds} must be at least 1; a median wants 5.")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads={self.threads} must be at least 1.")
        if self.num_texts is not None and self.num_texts < 1:
            raise ConfigError(f"num_texts={self.num_texts} must be at least 1.")
        if self.input is None and self.workload not in NAMES:
            raise ConfigError(f"workload {self.workload!r} is unknown; use one of {', '.join(NAMES)}.")

    @property
    def quantization(self) -> str | None:
        quantization_option: str | None = self.llm.get("quantization")
        return None if quantization_option == "none" else quantization_option

    @property
    def int8(self) -> bool:
        return self.quantization == "int8"

    @property
    def num_threads(self) -> int:
        from ..runtime.machine.cores import usable_cores

        return self.threads or self.llm.get("num_threads") or usable_cores()
