"""`LLM.decide`: each request becomes prompts, all of them run together, and each request gets its answers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, PromptError
from ..inputs.prompts import Prompt, as_list
from ..outputs import Decision
from .output_processor import not_finite
from .tasks import PoolingTask, TaskCall, task_call

if TYPE_CHECKING:
    from ..decisions.reading import DecisionPrompt, DecisionReader
    from ..inputs.tokenization import Tokenized
    from ..model.loaded_model import LoadedModel
    from ..params import PoolingParams
    from ..runtime.engine import Result

Read = Sequence["DecisionPrompt"]
"""The prompts of one request."""
_TOO_LONG = "a state is not cut: shorten it, or take one field of the row as the state (--state-field)"
_FIRST_WINDOW, _WINDOW = 16, 256  # requests of a stream that run together: few at first, so that answers come soon


def reader_of(loaded: LoadedModel) -> DecisionReader:
    """What reads requests for a model.

    Raises:
        ConfigError: it was not opened for decisions.
    """
    if loaded.decisions is None:
        raise ConfigError(
            f"{loaded.options.model} was not opened for decisions; open it with convert='decide' (--convert decide), which takes "
            "a language model with its output layer."
        )
    return loaded.decisions


def read_each(loaded: LoadedModel, requests: Sequence[Any]) -> list[Read | PromptError]:
    """The prompts of each request, or why it has none."""
    reader, found = reader_of(loaded), list[Read | PromptError]()
    with loaded.engine.counters.timed("tokenize"):
        for request in requests:
            try:
                prompts = reader.read(request)
                for each in prompts:
                    loaded.processor.check_length(len(each.token_ids), _TOO_LONG)
                found.append(prompts)
            except PromptError as error:
                found.append(error)
    return found


def decide(loaded: LoadedModel, prompts: Any) -> TaskCall[Decision]:
    """A call that answers requests; what it takes and raises is said at `LLM.decide`."""
    requests = as_list(prompts)
    read = []
    for index, each in enumerate(read_each(loaded, requests)):
        if isinstance(each, PromptError):
            raise type(each)(f"request {index}: {each}", each.param) if len(requests) > 1 else each
        read.append(each)
    return _call(loaded, read)


def decide_each(
    loaded: LoadedModel, requests: Iterable[Any], next_id: Callable[[], str]
) -> Iterator[Decision | PromptError]:
    """Answers to a stream of requests, in their order, with memory for one window; or why there are none."""
    stream, size = iter(requests), _FIRST_WINDOW
    while window := list(itertools.islice(stream, size)):
        found = read_each(loaded, window)
        good = [each for each in found if not isinstance(each, PromptError)]
        has_images = any(prompt.media is not None for each in good for prompt in each)
        size = _FIRST_WINDOW if has_images else min(2 * size, _WINDOW)
        answers = iter(_answered(loaded, good, next_id) if good else ())
        for each in found:
            yield each if isinstance(each, PromptError) else next(answers)


def _answered(loaded: LoadedModel, read: Sequence[Read], next_id: Callable[[], str]) -> list[Decision | PromptError]:
    call = _call(loaded, read)
    tokenized = call.tokenize()
    results = loaded.runs[call.kind.task]([each.sequence for each in tokenized])
    return call.kind.finish(loaded, tokenized, results, call.params, next_id)


def _call(loaded: LoadedModel, read: Sequence[Read]) -> TaskCall[Decision]:
    """Prompts that are answered at their ends are classified; others are pooled at all their places."""
    prompts = [each for request in read for each in request]
    at_ends = "classify" in loaded.own_tasks and all(each.ends_at_mark for each in prompts)
    kind = PoolingTask("classify" if at_ends else "token_classify", functools.partial(_decided, read))
    given = [
        Prompt(token_ids=each.token_ids, pooled_at=None if at_ends else each.places, media=each.media)
        for each in prompts
    ]
    return task_call(loaded, kind, given, None, None, None)


def _decided(
    read: Sequence[Read],
    loaded: LoadedModel,
    tokenized: Sequence[Tokenized],
    results: Sequence[Result],
    params: Sequence[PoolingParams],
    next_id: Callable[[], str],
) -> list[Decision | PromptError]:
    """The answers to each request, of the results of all their prompts."""
    reader = reader_of(loaded)
    with loaded.engine.counters.timed("outputs"):
        stream = iter(results)
        return [_decision(reader, request, [next(stream) for _ in request]) for request in read]


def _decision(reader: DecisionReader, request: Read, results: Sequence[Result]) -> Decision | PromptError:
    answers, cached = dict[str, Any](), 0
    for prompt, result in zip(request, results, strict=True):
        if isinstance(result, PromptError):
            return result
        if not bool(result.row.isfinite().all()):
            return not_finite()
        answers |= reader.answers(prompt, result.row.reshape(len(prompt.places), -1))
        cached += result.num_cached_tokens
    return Decision(answers, sum(prompt.num_tokens for prompt in request), cached)
