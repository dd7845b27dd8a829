"""Many sequences → batches → one tensor each, in the order given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence

import torch

from ..errors import PromptError
from .batch import TokenSequence
from .runner import Runner

Step = Callable[[Sequence[TokenSequence]], "torch.Tensor | list[torch.Tensor]"]
Result = torch.Tensor | PromptError


def plan_batches(
    lengths: Sequence[int],
    keys: Sequence[Hashable],
    *,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    padded: bool,
) -> Iterator[list[int]]:
    """Fill batches up to the token budget, longest first; a sequence over the budget runs alone.

    Args:
        lengths: tokens of each sequence.
        keys: sequences share a batch only where these are equal.
        padded: a batch costs its longest sequence times its count, not the sum.

    Yields:
        Indices of one batch.
    """
    groups: dict[Hashable, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        groups.setdefault(keys[index], []).append(index)
    for members in groups.values():
        batch: list[int] = []
        tokens = 0
        for index in members:
            cost = lengths[batch[0]] * (len(batch) + 1) if padded and batch else tokens + lengths[index]
            if batch and (cost > max_num_batched_tokens or len(batch) == max_num_seqs):
                yield batch
                batch, cost = [], lengths[index]
            batch.append(index)
            tokens = cost
        yield batch


class Engine:
    """Runs sequences through one runner; safe to call from several threads.

    Args:
        runner: of the loaded model.
        max_num_batched_tokens: tokens in one forward, padding included.
        max_num_seqs: sequences in one forward.
    """

    def __init__(self, runner: Runner, *, max_num_batched_tokens: int, max_num_seqs: int) -> None:
        self.runner = runner
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        self._lock = threading.Lock()

    def logits(self, sequences: Sequence[TokenSequence]) -> list[Result]:
        """One `(num_labels,)` a sequence, float32 on the CPU."""
        return self._run(sequences, self.runner.logits)

    def states(self, sequences: Sequence[TokenSequence]) -> list[Result]:
        """One pooled state `(hidden,)` a sequence, float32 on the CPU."""
        return self._run(sequences, self.runner.states)

    def token_logits(self, sequences: Sequence[TokenSequence]) -> list[Result]:
        """One `(num_tokens, num_labels)` a sequence, float32 on the CPU."""
        return self._run(sequences, self.runner.token_logits)

    def _run(self, sequences: Sequence[TokenSequence], step: Step) -> list[Result]:
        distinct: dict[TokenSequence, int] = {}  # identical prompts run once
        places = [distinct.setdefault(each, len(distinct)) for each in sequences]
        unique = list(distinct)
        lengths = [len(each) for each in unique]
        results: dict[int, Result] = {}
        with self._lock:
            for batch in plan_batches(
                lengths,
                [self.runner.key(index, length) for index, length in enumerate(lengths)],
                max_num_batched_tokens=self.max_num_batched_tokens,
                max_num_seqs=self.max_num_seqs,
                padded=self.runner.mode.form != "packed",
            ):
                answers = _answers(step, [unique[index] for index in batch])
                results.update(zip(batch, answers, strict=True))
        return [results[place] for place in places]


def _answers(step: Step, sequences: Sequence[TokenSequence]) -> list[Result]:
    """One forward; if the model refuses it, one forward each, so that a prompt it refuses costs itself alone."""
    try:
        return [answer.cpu() for answer in step(sequences)]
    except (ValueError, IndexError, RuntimeError) as failure:
        if len(sequences) > 1:
            return [answer for each in sequences for answer in _answers(step, [each])]
        reason = str(failure).strip().splitlines() or [type(failure).__name__]
        return [PromptError(f"the model refuses this prompt of {len(sequences[0])} tokens: {reason[0][:200]}")]
