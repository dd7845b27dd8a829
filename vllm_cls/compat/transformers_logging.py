"""Silences transformers' logs and progress bars where vllm-cls checks and reports itself."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Within it transformers shows no progress bars and logs nothing below errors."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def quiet_gguf() -> Iterator[None]:
    """As `quiet`; but a GGUF file takes a while, so its bar is shown where stderr is a terminal and bars are wanted.

    transformers draws that one with tqdm itself, past its own switch.
    """
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    drawn: Any = reader.tqdm
    off = None if logging.is_progress_bar_enabled() else True  # None: off unless it is a terminal
    with quiet():
        reader.tqdm = functools.partial(drawn, disable=off)
        try:
            yield
        finally:
            reader.tqdm = drawn
