"""From the engine's answers to `LLM`'s outputs: one a prompt, in their order, or the reason why there is none.

Here those that are classes and scores; `tensors` makes the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from ..errors import PromptError
from ..outputs import ClassificationOutput, ClassificationRequestOutput, ScoringRequestOutput
from ..params import PoolingParams
from . import scoring

if TYPE_CHECKING:
    from ..inputs.tokenization import Tokenized
    from ..model.heads.output_heads import RunningHead
    from ..model.loaded_model import LoadedModel
    from ..runtime.adapter import LoRAAdapter
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
        default = loaded.heads[0].name
        found = _by_head(loaded, tokenized, results, params)
        for each, result, by_head, asked in zip(tokenized, results, found, params, strict=True):
            if isinstance(by_head, PromptError) or isinstance(result, PromptError):
                outputs.append(by_head)  # type: ignore[arg-type]  # an error that was given back is an error
                continue
            outputs.append(
                ClassificationRequestOutput(
                    next_id(),
                    by_head[asked.head_name or default],
                    list(each.sequence.token_ids),
                    num_cached_tokens=result.num_cached_tokens,
                    truncated=each.truncated,
                    heads={name: output for name, output in by_head.items() if name is not None},
                )
            )
        return outputs


def _by_head(
    loaded: LoadedModel, tokenized: Sequence[Tokenized], results: Sequence[Result], params: Sequence[PoolingParams]
) -> list[dict[str | None, ClassificationOutput] | PromptError]:
    """What each head gives each request of its logits, all at once: they are many small rows."""
    outputs: list[dict[str | None, ClassificationOutput] | PromptError] = list(results)  # type: ignore[arg-type]
    places: dict[LoRAAdapter | None, list[int]] = {}
    for index, each in enumerate(results):
        if not isinstance(each, PromptError):
            places.setdefault(tokenized[index].sequence.adapter, []).append(index)
    unasked = loaded.pooler.activates_unasked
    for adapter, members in places.items():
        rows = torch.stack([results[index].row for index in members])  # type: ignore[union-attr]
        logits = loaded.pooler.calibrated(rows)
        finite = torch.isfinite(logits).all(dim=-1).tolist()
        asked = [params[index].use_activation for index in members]
        activated = [unasked if each is None else each for each in asked]
        heads = loaded.heads if adapter is None else [head.with_adapter(adapter) for head in loaded.heads]
        found = {head.name: _of_head(head, logits[:, head.columns], activated) for head in heads}
        for row, index in enumerate(members):
            by_head = {name: outputs_of[row] for name, outputs_of in found.items()}
            outputs[index] = by_head if finite[row] else not_finite()
    return outputs


def _of_head(head: RunningHead, logits: torch.Tensor, activated: Sequence[bool]) -> list[ClassificationOutput]:
    """What a head gives each request of its calibrated logits `(n, num_labels)`.

    Args:
        activated: whether a request gets what the activation makes of them.
    """
    probs, raw, labels = head.activation(logits).tolist(), logits.tolist(), dict(head.id2label)
    likely = probs
    if not head.gives_probabilities:
        found = head.probabilities(logits)
        likely = [None] * len(raw) if found is None else found.tolist()
    return [
        ClassificationOutput(probs[row] if each else raw[row], raw[row], labels, likely[row])
        for row, each in enumerate(activated)
    ]


def rows_together(
    loaded: LoadedModel, results: Sequence[Result], count: int
) -> Iterator[tuple[slice, torch.Tensor | PromptError]]:
    """Where each `count` results stand that belong to one output, and their calibrated rows `(count, num_logits)`.

    In place of the rows is an error, where one of them failed.
    """
    for start in range(0, len(results), count):
        part = slice(start, start + count)
        failed = next((each for each in results[part] if isinstance(each, PromptError)), None)
        rows = [each.row for each in results[part] if not isinstance(each, PromptError)]
        if failed is not None or not all(bool(row.isfinite().all()) for row in rows):
            yield part, failed or not_finite()
        else:
            yield part, loaded.pooler.calibrated(torch.stack(rows))


def not_finite() -> PromptError:
    """Why a prompt has no answer whose numbers are none."""
    return PromptError("the model gives NaN or infinity for this prompt; try dtype='float32'.")


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


def all_good(outputs: Iterable[Output | PromptError]) -> list[Output]:
    """The outputs, or the first error."""
    good = []
    for each in outputs:
        if isinstance(each, PromptError):
            raise each
        good.append(each)
    return good
