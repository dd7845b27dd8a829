"""From the engine's answers to `LLM`'s outputs: one a prompt, in their order, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from ..errors import PromptError
from ..outputs import (
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringRequestOutput,
)
from ..params import PoolingParams
from . import finishing, scoring

if TYPE_CHECKING:
    from ..inputs.tokenization import Tokenized
    from ..model.loaded_model import LoadedModel
    from ..runtime.engine import Result

Output = TypeVar("Output")
NextId = Callable[[], str]


def classified(
    loaded: LoadedModel,
    tokenized: Sequence[Tokenized],
    results: Sequence[Result],
    params: Sequence[PoolingParams],
    next_id: NextId,
) -> list[ClassificationRequestOutput | PromptError]:
    """Probabilities of each prompt."""
    with loaded.engine.counters.timed("outputs"):
        outputs: list[ClassificationRequestOutput | PromptError] = []
        payloads = finishing.finish_classes(loaded, [each.sequence for each in tokenized], results, params)
        for each, result, by_head, asked in zip(tokenized, results, payloads, params, strict=True):
            if isinstance(by_head, PromptError) or isinstance(result, PromptError):
                outputs.append(by_head)  # type: ignore[arg-type]  # an error that was given back is an error
                continue
            outputs.append(
                ClassificationRequestOutput(
                    next_id(),
                    by_head[loaded.head_of(asked).name],
                    list(each.sequence.token_ids),
                    num_cached_tokens=result.num_cached_tokens,
                    truncated=each.truncated,
                    heads={name: output for name, output in by_head.items() if name is not None},
                )
            )
        return outputs


def scored(
    loaded: LoadedModel,
    tokenized: Sequence[Tokenized],
    results: Sequence[Result],
    params: Sequence[PoolingParams],
    next_id: NextId,
) -> list[ScoringRequestOutput | PromptError]:
    """The one probability of each pair."""
    outputs = classified(loaded, tokenized, results, params, next_id)
    return [each if isinstance(each, PromptError) else scoring.scored(each) for each in outputs]


def encoded(
    task: str,
    loaded: LoadedModel,
    tokenized: Sequence[Tokenized],
    results: Sequence[Result],
    params: Sequence[PoolingParams],
    next_id: NextId,
) -> list[PoolingRequestOutput | PromptError]:
    """A tensor for each prompt; see `LLM.encode`."""
    outputs: list[PoolingRequestOutput | PromptError] = []
    with loaded.engine.counters.timed("outputs"):
        for each, result, asked in zip(tokenized, results, params, strict=True):
            try:
                data = finishing.finish_row(loaded, task, result, each.sequence, asked)
            except PromptError as error:
                outputs.append(error)
                continue
            outputs.append(
                PoolingRequestOutput(
                    next_id(),
                    PoolingOutput(data),
                    list(each.sequence.token_ids),
                    num_cached_tokens=result.num_cached_tokens,  # type: ignore[union-attr]  # else it was an error
                    truncated=each.truncated,
                    offsets=_offsets(each, len(data)) if task == "token_classify" else None,
                )
            )
    return outputs


def _offsets(tokenized: Tokenized, num_rows: int) -> list[tuple[int, int] | None] | None:
    """Where the tokens stand, if each has a row."""
    places = tokenized.places
    if places is None or len(places.offsets) != num_rows:
        return None
    return [None if special else offset for offset, special in zip(places.offsets, places.special, strict=True)]


def embedded(
    loaded: LoadedModel,
    tokenized: Sequence[Tokenized],
    results: Sequence[Result],
    params: Sequence[PoolingParams],
    next_id: NextId,
) -> list[EmbeddingRequestOutput | PromptError]:
    """The numbers of each text."""
    return [
        each
        if isinstance(each, PromptError)
        else EmbeddingRequestOutput(
            each.request_id,
            EmbeddingOutput(each.outputs.data.tolist()),
            each.prompt_token_ids,
            num_cached_tokens=each.num_cached_tokens,
            truncated=each.truncated,
        )
        for each in encoded("embed", loaded, tokenized, results, params, next_id)
    ]


def all_good(outputs: Iterable[Output | PromptError]) -> list[Output]:
    """The outputs, or the first error."""
    good = []
    for each in outputs:
        if isinstance(each, PromptError):
            raise each
        good.append(each)
    return good
