"""The threads of a CPU: several forwards of one thread each, where there are enough; else one forward with all.

Independent forwards never wait for each other inside an operator, so they use more of the machine than threads
that share every operator (1.87 against 1.75 of one thread on two cores, measured). Weights are shared.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from .cores import usable_cores

A = TypeVar("A")
B = TypeVar("B")

_MAX_WORKERS = 16  # beyond, threads of Python wait for each other more than for the processor
_KEPT_KERNELS = "32"
# glibc's names and numbers (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Workers:
    """Runs one function over many batches.

    Args:
        num_threads: of the CPU, for all forwards together; 0 where the device is not a CPU.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        # As many workers as leave no thread without one: 24 threads are 12 workers of two.
        self.count = max(1, num_threads // max(1, -(-num_threads // _MAX_WORKERS)))
        self._made_in = os.getpid()
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0

    def run(self, function: Callable[[A], B], batches: Sequence[A], *, parallel: bool) -> list[B]:
        """`function` of each batch, in their order.

        Args:
            parallel: batches may run at once.
        """
        if self.num_threads == 0:
            return [function(batch) for batch in batches]
        before = torch.get_num_threads()
        try:
            if not parallel or self.count == 1 or len(batches) < self.count:
                torch.set_num_threads(1 if self._is_forked else self.num_threads)
                return [function(batch) for batch in batches]
            torch.set_num_threads(self._threads_each)  # MKL's number is one for all threads
            futures = [self._threads.submit(function, batch) for batch in batches]
            try:
                return [future.result() for future in futures]
            finally:
                for future in futures:
                    future.cancel()
        finally:
            torch.set_num_threads(before)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    @property
    def _is_forked(self) -> bool:
        """A forked process has OpenMP's pool and none of its threads: an operator that uses several waits for ever."""
        return self._made_in != os.getpid()

    @property
    def _threads_each(self) -> int:
        return 1 if self._is_forked else self.num_threads // self.count

    @property
    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None or self._process != os.getpid():  # a forked process has the pool and none of its threads
            self._process = os.getpid()
            start = functools.partial(torch.set_num_threads, self._threads_each)
            self._pool = ThreadPoolExecutor(self.count, "vllm_cls_worker", start)
        return self._pool


def bound_kernel_caches() -> None:
    """Have oneDNN keep the kernels of a few shapes, not of a thousand: each number of rows gets some of its own.

    They take 1 to 5 MB each, so that batches of ever other sizes filled gigabytes (measured); within a forward the
    layers repeat a few shapes. oneDNN and the layer that torch puts over it read these names when they first
    multiply. The user's own stand.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, _KEPT_KERNELS)


def for_device(device: torch.device, num_threads: int | None) -> Workers:
    """The workers for a device; `num_threads` None takes what torch uses, at most the usable cores."""
    if device.type != "cpu":
        return Workers(0)
    keep_freed_memory()
    return Workers(num_threads or default_num_threads())


@functools.cache
def default_num_threads() -> int:
    """What torch uses, at most the usable cores; asked once, since forwards that run change what torch says."""
    return min(torch.get_num_threads(), usable_cores())


@functools.cache
def keep_freed_memory() -> bool:
    """Have glibc keep what activations free, instead of giving it back to the kernel and faulting it in again.

    A page fault costs more than the element-wise work on the page: 1.03 to 1.1 times as fast, measured. Where the
    C library is another, nothing happens. `MALLOC_…` and
    `GLIBC_TUNABLES` of the user's stand.
    """
    mallopt = _from_libc("mallopt")
    if mallopt is None or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 32 << 20) and mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


def give_back_memory() -> None:
    """Give the kernel what glibc has kept, when a model is closed."""
    trim = _from_libc("malloc_trim")
    if trim is not None:
        trim(0)


def _from_libc(name: str) -> Any:
    """A function of the C library, or None where it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
