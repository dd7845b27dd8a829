"""Which work shares a forward, and which forwards run at once."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from .batch import TokenSequence

# An own batch for each worker pays from so many tokens on; below, the workers' threads join in one.
_MIN_TOKENS_A_WORKER = 128


@dataclass(frozen=True)
class Budget:
    """What a forward holds at most.

    Args:
        max_num_batched_tokens: tokens, padding included.
        max_num_seqs: sequences.
        num_workers: forwards that run at once; batches come out as many as keep all of them busy.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    num_workers: int = 1


def plan_batches(lengths: Sequence[int], keys: Sequence[Hashable], budget: Budget, *, padded: bool) -> list[list[int]]:
    """Fill batches up to the budget; a sequence over it runs alone.

    Args:
        lengths: tokens of each that are computed.
        keys: sequences share a batch only where these are equal.
        padded: a batch costs its longest sequence times its count, so it holds near-equal lengths; packed ones cost
            the sum, and are made equally large.

    Returns:
        Indices of each batch, longest sequence first.
    """
    groups: dict[Hashable, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        groups.setdefault(keys[index], []).append(index)
    fill = _padded if padded else _packed
    return [batch for members in groups.values() for batch in fill(members, lengths, budget)]


def _padded(members: Sequence[int], lengths: Sequence[int], budget: Budget) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in members:
        cost = lengths[batch[0]] * (len(batch) + 1) if batch else 0
        if batch and (cost > budget.max_num_batched_tokens or len(batch) == budget.max_num_seqs):
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _packed(members: Sequence[int], lengths: Sequence[int], budget: Budget) -> list[list[int]]:
    """The longest first, each to the emptiest batch (Graham's LPT rule), with as few batches as hold them."""
    limit = budget.max_num_batched_tokens
    alone = [[index] for index in members if lengths[index] >= limit]
    rest = members[len(alone) :]
    total = sum(map(lengths.__getitem__, rest))
    if not rest:
        return alone
    step = budget.num_workers if total >= budget.num_workers * _MIN_TOKENS_A_WORKER else 1
    fewest = max(-(-total // limit), -(-len(rest) // budget.max_num_seqs))
    # The count is found as in a search for a name in a book: every batch of one sequence holds, few do not.
    low, high = -(-fewest // step) - 1, -(-fewest // step)
    while (batches := _spread(rest, lengths, high * step, budget)) is None:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if (tried := _spread(rest, lengths, middle * step, budget)) is None:
            low = middle
        else:
            high, batches = middle, tried
    return alone + [batch for batch in batches if batch]


def _spread(members: Sequence[int], lengths: Sequence[int], count: int, budget: Budget) -> list[list[int]] | None:
    """Spread over `count` batches, or None where one overflows."""
    batches: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]
    for index in members:
        load, number = heapq.heappop(loads)
        load += lengths[index]
        batches[number].append(index)
        if load > budget.max_num_batched_tokens or len(batches[number]) > budget.max_num_seqs:
            return None
        heapq.heappush(loads, (load, number))
    return batches


def begun(sequence: TokenSequence, length: int) -> TokenSequence:
    """The first `length` tokens of a prompt."""
    types = sequence.token_type_ids
    return TokenSequence(
        sequence.token_ids[:length],
        sequence.position_ids[:length],
        None if types is None else types[:length],
        sequence.cache_salt,
        sequence.adapter,
        exact=sequence.exact,
        media=None if sequence.media is None else sequence.media.begun(length),
    )
