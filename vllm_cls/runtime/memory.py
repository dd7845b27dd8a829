"""Running out of memory: how it shows, and what helps."""

from __future__ import annotations

import torch


def is_exhausted(failure: Exception) -> bool:
    """Whether a forward failed for want of memory, on a GPU or in the CPU's allocator."""
    if isinstance(failure, torch.OutOfMemoryError):
        return True
    return isinstance(failure, RuntimeError) and "can't allocate memory" in str(failure)


def release(device: torch.device) -> None:
    """Give back what the allocator holds and nobody uses."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
