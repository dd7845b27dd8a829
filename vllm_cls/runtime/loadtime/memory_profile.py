"""The memory of a GPU, planned from forwards of the largest batch that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..batch import ForwardItem
from ..machine.memory import MemoryPlan, plan, release
from ..runner import Runner

MakeWorks = Callable[[Sequence[int]], Sequence[ForwardItem]]


def plan_memory(
    runner: Runner,
    works_of: MakeWorks,
    *,
    num_tokens: int,
    num_sequences: int,
    longest: int,
    prefix_cache_bytes: int,
) -> MemoryPlan:
    """What fits, tried with sequences as long as the model takes them, which need the most.

    Args:
        works_of: makes works of these lengths.
        num_tokens: wanted in a forward; num_sequences likewise.
        longest: the model's longest sequence.
    """

    def measure(tokens: int) -> int:
        works = works_of(batch_lengths(tokens, longest, num_sequences))
        return peak_bytes(runner, [each for each in works if _shares(runner, works[0], each)])

    return plan(measure, num_tokens, prefix_cache_bytes, free_bytes(runner.device))


def batch_lengths(num_tokens: int, longest: int, num_sequences: int) -> list[int]:
    """Lengths of the batch that needs the most memory: as long as can be, as many as fit."""
    length = min(longest, num_tokens)
    return [length] * max(1, min(num_tokens // length, num_sequences))


def peak_bytes(runner: Runner, works: Sequence[ForwardItem]) -> int:
    """Bytes that one forward takes at its peak, beyond what is held before it."""
    device = runner.device
    torch.cuda.synchronize(device)
    release(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step = runner.states if runner.head is None and not runner.mode.whole else runner.logits
    step(works)
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still get."""
    release(device)
    free: int = torch.cuda.mem_get_info(device)[0]
    return free


def _shares(runner: Runner, first: ForwardItem, other: ForwardItem) -> bool:
    return other is first or runner.key(0, len(first)) == runner.key(1, len(other))
