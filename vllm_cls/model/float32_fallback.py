"""Float32 fallback: prompts with a low margin in int8, whose label might differ in float32, run again in float32.

int8 moves logits a little. Random prompts tell by how much, when the model is loaded; a prompt whose best label is
ahead by less than a few times that might have another label in float32. So int8 costs next to no labels, and float32's
time for the prompts at a boundary alone. A prompt's own logits decide: what shares its call changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from ..errors import PromptError

if TYPE_CHECKING:
    from ..runtime.adapter import LoRAAdapter
    from ..runtime.batch import TokenSequence
    from ..runtime.engine import Engine, Result, SequenceResult
    from .heads.output_heads import RunningHead
    from .heads.pooler import Pooler

# Errors, as root mean squares, that a label has to be ahead by; of a normal distribution 1 in 80 is larger.
_ERRORS = 2.5


@dataclass(frozen=True)
class Boundary:
    """The decision boundary of one head, and the margin below which int8 is not trusted.

    Args:
        columns: the head's columns of the calibrated logits.
        several: multi-label, each label from the probability 0.5 on.
        reach: the margin in logits; a prompt with a smaller one runs again.
    """

    columns: slice
    several: bool
    reach: float = math.inf

    def distances(self, logits: torch.Tensor) -> torch.Tensor:
        """The margins of calibrated logits `(n, num_labels)`: how far they are from another label, `(n,)`."""
        own = logits[:, self.columns]
        if self.several:
            return own.abs().amin(1)
        first, second = own.topk(2, dim=1).values.unbind(1)
        return first - second

    def measured(self, logits: torch.Tensor, exact: torch.Tensor) -> Boundary:
        """The boundary with a margin measured from logits `(n, num_labels)` in int8 and in float32."""
        error = (logits - exact)[:, self.columns]
        error = error[error.isfinite().all(1)]
        if len(error) == 0:
            return self
        # Twice the variance over labels is the mean square over their differences.
        square = error.square().mean() if self.several else 2 * error.var(dim=1).mean()
        return replace(self, reach=_ERRORS * math.sqrt(float(square)))


class Float32Fallback:
    """Logits of an int8 model, those with a low margin in float32; safe to call from several threads.

    Args:
        engine: of the model.
        heads: of the model; an adapter brings one of its own.
        pooler: calibrates logits.
        prompts: random ones, which run in both precisions for the model, and for an adapter at its first use.
    """

    def __init__(
        self, engine: Engine, heads: Sequence[RunningHead], pooler: Pooler, prompts: Sequence[TokenSequence]
    ) -> None:
        self._engine, self._heads, self._pooler, self._prompts = engine, heads, pooler, prompts
        self._of_adapters: WeakKeyDictionary[LoRAAdapter, list[Boundary]] = WeakKeyDictionary()
        self._of_model: list[Boundary] | None = None

    def logits(self, sequences: Sequence[TokenSequence]) -> list[Result]:
        """Each `(num_labels,)`."""
        results = self._engine.logits(sequences)
        close = self._close(sequences, results)
        if close:  # who runs nothing waits for nobody
            exact = self._engine.logits([replace(sequences[index], exact=True) for index, _ in close])
            for (index, first), again in zip(close, exact, strict=True):
                rerun = again if isinstance(again, PromptError) else replace(first, row=again.row)
                results[index] = rerun  # as many cached tokens as were counted
        return results

    def _close(self, sequences: Sequence[TokenSequence], results: Sequence[Result]) -> list[tuple[int, SequenceResult]]:
        """The prompts with a low margin, by their indices."""
        by_adapter: dict[LoRAAdapter | None, list[tuple[int, SequenceResult]]] = {}
        for index, (sequence, result) in enumerate(zip(sequences, results, strict=True)):
            if not isinstance(result, PromptError):
                by_adapter.setdefault(sequence.adapter, []).append((index, result))
        close: list[tuple[int, SequenceResult]] = []
        for adapter, members in by_adapter.items():
            logits = self._calibrated([answer for _, answer in members])
            near = torch.zeros(len(members), dtype=torch.bool)
            for each in self.boundaries(adapter):
                near |= each.distances(logits) <= each.reach
            close += [members[place] for place in near.nonzero().flatten().tolist()]
        return close

    def boundaries(self, adapter: LoRAAdapter | None = None) -> list[Boundary]:
        """The boundaries of the model's heads, or of an adapter's head; measured at their first use."""
        if adapter is None:
            self._of_model = self._measured(None) if self._of_model is None else self._of_model
            return self._of_model
        if adapter not in self._of_adapters:
            self._of_adapters[adapter] = self._measured(adapter)
        return self._of_adapters[adapter]

    def _measured(self, adapter: LoRAAdapter | None) -> list[Boundary]:
        """The measured boundaries of the heads that predict labels."""
        heads = [head.with_adapter(adapter) for head in self._heads]
        found = [Boundary(head.columns, _several(head)) for head in heads if _predicts_labels(head)]
        if not found:
            return []
        prompts = [replace(each, adapter=adapter) for each in self._prompts]
        pairs = zip(
            self._engine.logits(prompts, asked=False),
            self._engine.logits([replace(each, exact=True) for each in prompts], asked=False),
            strict=True,
        )
        good = [
            (result, exact)
            for result, exact in pairs
            if not isinstance(result, PromptError) and not isinstance(exact, PromptError)
        ]
        if not good:
            return found
        logits, exact = (self._calibrated(each) for each in zip(*good, strict=True))
        return [each.measured(logits, exact) for each in found]

    def _calibrated(self, answers: Sequence[SequenceResult]) -> torch.Tensor:
        return self._pooler.calibrated(torch.stack([each.row for each in answers]))


def _several(head: RunningHead) -> bool:
    return head.problem_type == "multi_label_classification"


def _predicts_labels(head: RunningHead) -> bool:
    """Whether the head predicts labels: not a regression, nor a single score."""
    return _several(head) or (head.problem_type != "regression" and len(head.id2label) > 1)
