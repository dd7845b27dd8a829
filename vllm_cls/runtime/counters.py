"""What an engine has done so far: counted, so that a test can see an optimisation at work without timing it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

STAGES = ("tokenize", "plan", "forward", "device", "outputs")


@dataclass
class Counters:
    """Sums since the engine was made (or since `snapshot`, as a difference of two).

    Args:
        num_prompts: prompts that were asked for.
        num_prompt_tokens: their tokens, as if each ran alone.
        num_forwards: forwards of the model.
        num_tokens: tokens that the forwards computed, padding included.
        num_sequences: sequences of the forwards that were begun, so that one can see a long call go on.
        num_duplicates: prompts answered by an identical one.
        num_shared_tokens: tokens of prompts whose keys and values were at hand, computed once for several prompts.
        num_pruned_tokens: tokens for which the last layer computed keys and values only.
        num_encoded: images and videos that the model's towers read.
        num_close_calls: prompts that int8 left open and that ran again in float32.
        seconds: by stage. Forwards of several workers add up, so that their sum can exceed the wall clock; "device" is
            how long any of them ran.
    """

    num_prompts: int = 0
    num_prompt_tokens: int = 0
    num_forwards: int = 0
    num_tokens: int = 0
    num_sequences: int = 0
    num_duplicates: int = 0
    num_shared_tokens: int = 0
    num_pruned_tokens: int = 0
    num_encoded: int = 0
    num_close_calls: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **counts: int) -> None:
        """Add to several counts at once; safe from any thread."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent within to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            with self._lock:
                self.seconds[stage] += spent

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add to a stage's time; safe from any thread."""
        with self._lock:
            self.seconds[stage] += seconds

    def snapshot(self) -> Counters:
        """A copy that stands still."""
        with self._lock:
            return Counters(**{**self._counts(), "seconds": dict(self.seconds)})  # type: ignore[arg-type]

    def clear(self) -> None:
        """Begin again."""
        with self._lock:
            for name in self._counts():
                setattr(self, name, 0)
            self.seconds.update(dict.fromkeys(STAGES, 0.0))

    def __sub__(self, earlier: Counters) -> Counters:
        counts = {name: count - getattr(earlier, name) for name, count in self._counts().items()}
        seconds = {stage: self.seconds[stage] - earlier.seconds[stage] for stage in self.seconds}
        return Counters(**counts, seconds=seconds)

    def _counts(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name.startswith("num_")}
