"""Memory: how much a forward may take, how running out of it shows, and what helps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

_SPARE = 0.1  # of the free memory, for what the allocator cannot piece together and what libraries take
_FEWEST_TOKENS = 256
# How the CPU's allocator, cuBLAS and the driver say it.
_EXHAUSTED = ("can't allocate memory", "std::bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


@dataclass(frozen=True)
class MemoryPlan:
    """What fits together in a device's memory.

    Args:
        max_num_batched_tokens: tokens in one forward.
        prefix_cache_bytes: keys and values kept beside it.
    """

    max_num_batched_tokens: int
    prefix_cache_bytes: int


def plan(measure: Callable[[int], int], num_tokens: int, prefix_cache_bytes: int, free_bytes: int) -> MemoryPlan:
    """Halve a forward's tokens until it fits beside the prefix cache; then the cache gets what is left, at most.

    Args:
        measure: runs a forward of so many tokens and gives the bytes that it took at its peak.
        num_tokens: as many as are wanted.
        prefix_cache_bytes: as many as are wanted; a forward may claim half of the memory all the same.
        free_bytes: of the device, with the weights in place.
    """
    usable = int(free_bytes * (1 - _SPARE))
    for_forward = usable - min(prefix_cache_bytes, usable // 2)
    while True:
        needed = _measured(measure, num_tokens)
        if num_tokens <= _FEWEST_TOKENS or (needed is not None and needed <= for_forward):
            break
        num_tokens = max(num_tokens // 2, _FEWEST_TOKENS)
    left = 0 if needed is None else max(0, usable - needed)
    return MemoryPlan(num_tokens, min(prefix_cache_bytes, left))


def _measured(measure: Callable[[int], int], num_tokens: int) -> int | None:
    """What a forward takes; None where it does not fit at all."""
    try:
        return measure(num_tokens)
    except RuntimeError as failure:
        if not is_exhausted(failure):
            raise
    return None


def is_exhausted(failure: Exception) -> bool:
    """Whether a forward failed for want of memory, on a GPU or in the CPU's allocator."""
    if isinstance(failure, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(failure, RuntimeError) and any(sign in str(failure) for sign in _EXHAUSTED)


def release(device: torch.device) -> None:
    """Give back what the allocator holds and nobody uses."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
