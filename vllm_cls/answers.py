"""From tokenized prompts to `LLM`'s outputs, one for each, in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from .errors import PromptError
from .outputs import ClassificationRequestOutput, PoolingOutput, PoolingRequestOutput
from .params import PoolingParams

if TYPE_CHECKING:
    from .serving import Served
    from .tokenization import Tokenized

Output = TypeVar("Output")


def classification_outputs(
    served: Served, tokenized: Sequence[Tokenized], params: Sequence[PoolingParams], next_id: Callable[[], str]
) -> list[ClassificationRequestOutput | PromptError]:
    """Probabilities of each prompt, or why there are none."""
    sequences = [each.sequence for each in tokenized]
    answers = served.run("classify", sequences)
    with served.engine.counters.timed("outputs"):
        outputs: list[ClassificationRequestOutput | PromptError] = []
        for each, answer, found in zip(tokenized, answers, served.classified(sequences, answers, params), strict=True):
            if isinstance(found, PromptError) or isinstance(answer, PromptError):
                outputs.append(found)  # type: ignore[arg-type]  # an error that was given back is an error
                continue
            ids, cached = list(each.sequence.token_ids), answer.num_cached_tokens
            outputs.append(
                ClassificationRequestOutput(next_id(), found, ids, num_cached_tokens=cached, truncated=each.truncated)
            )
        return outputs


def pooling_outputs(
    served: Served,
    task: str,
    tokenized: Sequence[Tokenized],
    params: Sequence[PoolingParams],
    next_id: Callable[[], str],
) -> list[PoolingRequestOutput]:
    """Tensors for each prompt; see `LLM.encode`.

    Raises:
        PromptError: a prompt has none.
    """
    rows = served.run(task, [each.sequence for each in tokenized])
    outputs = []
    for each, row, asked in zip(tokenized, rows, params, strict=True):
        data = served.finish(task, row, each.sequence, asked)
        ids = list(each.sequence.token_ids)
        outputs.append(
            PoolingRequestOutput(
                next_id(),
                PoolingOutput(data),
                ids,
                num_cached_tokens=row.num_cached_tokens,  # type: ignore[union-attr]  # an error was raised by now
                truncated=each.truncated,
            )
        )
    return outputs


def all_good(outputs: Sequence[Output | PromptError]) -> list[Output]:
    """The outputs, or the first error."""
    good = []
    for each in outputs:
        if isinstance(each, PromptError):
            raise each
        good.append(each)
    return good
