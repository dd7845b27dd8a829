"""Many sequences → batches → one tensor each, in the order given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence

import torch

from .batch import TokenSequence
from .runner import Runner

Step = Callable[[Sequence[TokenSequence]], "torch.Tensor | list[torch.Tensor]"]


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

    def logits(self, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
        """One `(num_labels,)` a sequence, float32 on the CPU."""
        return self._run(sequences, self.runner.logits)

    def states(self, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
        """One pooled state `(hidden,)` a sequence, float32 on the CPU."""
        return self._run(sequences, self.runner.states)

    def token_logits(self, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
        """One `(num_tokens, num_labels)` a sequence, float32 on the CPU."""
        return self._run(sequences, self.runner.token_logits)

    def _run(self, sequences: Sequence[TokenSequence], step: Step) -> list[torch.Tensor]:
        distinct: dict[TokenSequence, int] = {}  # identical prompts run once
        places = [distinct.setdefault(each, len(distinct)) for each in sequences]
        unique = list(distinct)
        lengths = [len(each) for each in unique]
        results: list[torch.Tensor | None] = [None] * len(unique)
        with self._lock:
            for batch in plan_batches(
                lengths,
                [self.runner.key(index, length) for index, length in enumerate(lengths)],
                max_num_batched_tokens=self.max_num_batched_tokens,
                max_num_seqs=self.max_num_seqs,
                padded=self.runner.mode.form != "packed",
            ):
                answers = step([unique[index] for index in batch])
                for index, answer in zip(batch, answers, strict=True):
                    results[index] = answer.cpu()
        return [results[place] for place in places]  # type: ignore[misc]  # every place was filled
