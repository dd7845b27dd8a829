"""A stream of prompts, answered a window at a time, with memory for one window."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import PromptError
from ..inputs.tokenization import Tokenized, Truncation

if TYPE_CHECKING:
    from ..model.loaded_model import LoadedModel

Output = TypeVar("Output")

# Prompts looked at together, to batch by length: few at first, so that answers come soon.
_FIRST_WINDOW, _WINDOW = 64, 4096


def answered(
    served: LoadedModel,
    prompts: Iterable[Any],
    truncation: Truncation,
    answer: Callable[[Sequence[Tokenized]], Sequence[Output | PromptError]],
    failed: Callable[[str], Output],
) -> Iterator[Output]:
    """One output a prompt, in their order; a bad prompt affects no other.

    Args:
        answer: outputs of the prompts that could be tokenized.
        failed: the output of a prompt that has none, for this reason.
    """
    for tokenized in _tokenized_windows(served, iter(prompts), truncation):
        outputs = iter(answer([each for each in tokenized if isinstance(each, Tokenized)]))
        for each in tokenized:
            output = next(outputs) if isinstance(each, Tokenized) else each
            yield failed(str(output)) if isinstance(output, PromptError) else output


def _tokenized_windows(
    served: LoadedModel, prompts: Iterator[Any], truncation: Truncation
) -> Iterator[list[Tokenized | PromptError]]:
    """Windows of a stream, tokenized; for a GPU the next one is read and tokenized while the last one runs.

    On a CPU that would gain nothing: the model takes all of it.
    """
    engine, processor, size = served.engine, served.processor, _FIRST_WINDOW

    def tokenize(window: list[Any]) -> list[Tokenized | PromptError]:
        with engine.counters.timed("tokenize"):
            return processor.tokenize(window, truncation)

    def windows() -> Iterator[list[Any]]:
        nonlocal size
        while window := list(itertools.islice(prompts, size)):
            size = min(2 * size, _WINDOW)
            yield window

    if engine.runner.device.type == "cpu":
        yield from map(tokenize, windows())
        return
    with ThreadPoolExecutor(1, thread_name_prefix="vllm_cls_tokenizer") as ahead:
        waiting: Future[list[Tokenized | PromptError]] | None = None
        for window in windows():  # read here: what reads may belong to this thread
            before, waiting = waiting, ahead.submit(tokenize, window)
            if before is not None:
                yield before.result()
        if waiting is not None:
            yield waiting.result()
