"""The progress bar of a call with many prompts, by tqdm."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ConfigError
from .counters import Counters

UseTqdm = bool | Callable[..., Any]

_SECONDS = 0.1


@contextmanager
def bar(use_tqdm: UseTqdm, total: int, counters: Counters, text: str = "Processed prompts") -> Iterator[None]:
    """A bar on stderr that follows what an engine computes, and is full when the context ends without an error.

    Args:
        use_tqdm: True, where there is a terminal, or what makes the bar in place of `tqdm`, as vLLM takes it.
        total: prompts of the call. Of identical ones a single one is computed.
        counters: of the engine; other calls at the same time count as well.

    Raises:
        ConfigError: `use_tqdm` is neither.
    """
    if not (isinstance(use_tqdm, bool) or callable(use_tqdm)):
        raise ConfigError(f"use_tqdm={use_tqdm!r} is True, False, or a function that makes a bar as tqdm does.")
    if not use_tqdm or (use_tqdm is True and not (sys.stderr and sys.stderr.isatty())):
        yield
        return
    if use_tqdm is True:
        from tqdm.auto import tqdm as make
    else:
        make = use_tqdm
    before, ended = counters.num_sequences, threading.Event()
    shown = make(total=total, desc=text, dynamic_ncols=True)
    done = 0

    def follow() -> None:
        nonlocal done
        while not ended.wait(_SECONDS):
            now = min(total, counters.num_sequences - before)
            shown.update(max(0, now - done))
            done = max(done, now)

    thread = threading.Thread(target=follow, name="vllm_cls_bar", daemon=True)
    thread.start()
    answered = False
    try:
        yield
        answered = True
    finally:
        ended.set()
        thread.join()
        if answered:
            shown.update(total - done)
        shown.close()
