"""Where the time of a job went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..overlap import Channel


@dataclass(frozen=True)
class JobStats:
    """Seconds of each step of a job. Steps run at once, so that their sum can exceed the whole.

    Args:
        rows: read and written.
        seconds: of the whole, without loading the model.
        reading: of the thread that reads and parses the inputs.
        tokenizing: texts become token ids.
        planning: of batches, and of what prompts have in common.
        computing: at least one forward of the model ran.
        answering: numbers of the model become outputs.
        writing: of the thread that writes results, and keeps them for a run to come.
        waiting: what computes waited for rows to be read, or for room to hand over results.
        tokens: of the prompts, as if each ran alone.
        forwards: of the model.
        execution: the form of batches, the attention and the device that ran.
    """

    rows: int
    seconds: float
    reading: float
    tokenizing: float
    planning: float
    computing: float
    answering: float
    writing: float
    waiting: float
    tokens: int
    forwards: int
    execution: str

    @property
    def busy(self) -> float:
        """The share of the time in which the device computed."""
        return self.computing / self.seconds if self.seconds else 0.0

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def stats_of(
    rows: int, seconds: float, read: Channel[Any], written: Channel[Any], computed: Any, execution: str
) -> JobStats:
    """The stats of a job from what its threads and its model measured.

    Args:
        read: the rows went through it.
        written: the results did.
        computed: by the model meanwhile, a difference of `LLM.counters`; None of a server's.
    """
    stages = {} if computed is None else computed.seconds
    return JobStats(
        rows,
        seconds,
        reading=read.seconds_alone,
        tokenizing=stages.get("tokenize", 0.0),
        planning=stages.get("plan", 0.0),
        computing=stages.get("device", 0.0),
        answering=stages.get("outputs", 0.0),
        writing=written.seconds_alone,
        waiting=read.seconds_empty + written.seconds_full,
        tokens=0 if computed is None else computed.num_prompt_tokens,
        forwards=0 if computed is None else computed.num_forwards,
        execution=execution,
    )
