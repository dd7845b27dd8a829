"""A stream of prompts, answered a window at a time, with memory for one window."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from ..errors import PromptError
from ..inputs.media_parts import holds_media
from ..inputs.tokenization import Tokenized
from ..outputs import RequestOutput
from .output_processor import NextId
from .tasks import TaskCall

Streamed = TypeVar("Streamed", bound=RequestOutput[Any])

# Prompts looked at together, to batch by length: few at first, so that answers come soon.
_FIRST_WINDOW, _WINDOW = 64, 4096
_AS_MANY = 32  # texts: what a prompt with images or videos takes of a window


def stream_outputs(
    call: TaskCall[Streamed],
    prompts: Iterable[Any],
    next_id: NextId,
    output: type[Streamed],
    again: Callable[[Sequence[Any]], TaskCall[Streamed]] | None = None,
) -> Iterator[Streamed]:
    """One output a prompt, in their order; a bad prompt affects no other.

    Args:
        call: what is asked of each; its own prompts are not read.
        output: the class of the outputs; one with its `error` is given for a prompt that has no answer.
        again: asks it of a window; None is `call.with_prompts`.
    """
    windows = _windows(call, iter(prompts), again or call.with_prompts)
    for window, tokenized in _tokenized(call, windows):
        for each in window.run_each(tokenized, next_id):
            yield output(next_id(), None, [], error=str(each)) if isinstance(each, PromptError) else each


def _tokenized(
    call: TaskCall[Streamed], windows: Iterator[TaskCall[Streamed]]
) -> Iterator[tuple[TaskCall[Streamed], list[Tokenized | PromptError]]]:
    """Windows of a stream, tokenized; for a GPU the next one is read and tokenized while the last one runs.

    On a CPU that would gain nothing: the model takes all of it.
    """
    if call.loaded.engine.runner.device.type == "cpu":
        for window in windows:
            for part, tokenized in window.parts():
                yield window.only(part), tokenized
        return
    with ThreadPoolExecutor(1, thread_name_prefix="vllm_cls_tokenizer") as ahead:
        waiting: tuple[TaskCall[Streamed], Future[list[Tokenized | PromptError]]] | None = None
        for window in windows:  # read here: what reads may belong to this thread
            before, waiting = waiting, (window, ahead.submit(window.tokenize_each))
            if before is not None:
                yield before[0], before[1].result()
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _windows(
    call: TaskCall[Streamed], prompts: Iterator[Any], again: Callable[[Sequence[Any]], TaskCall[Streamed]]
) -> Iterator[TaskCall[Streamed]]:
    size = _FIRST_WINDOW
    take = itertools.islice if call.processor.media is None else _first_of
    while window := list(take(prompts, max(1, size // call.each))):
        size = min(2 * size, _WINDOW)
        yield again(window)


def _first_of(prompts: Iterator[Any], size: int) -> Iterator[Any]:
    """As `islice`, where a prompt with images or videos, whose pixels are held, counts as many."""
    for prompt in prompts:
        yield prompt
        size -= _AS_MANY if holds_media(prompt) else 1
        if size <= 0:
            return
