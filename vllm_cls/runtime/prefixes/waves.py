"""Which shared prefixes are held at the same time, so that their keys and values fit in memory."""

from __future__ import annotations

from collections.abc import Sequence

from .prefix_tree import PrefixPlan


def waves(plan: PrefixPlan, max_tokens: int) -> list[list[int]]:
    """Shared prefixes in waves whose keys and values are held at the same time; too large ones are left out.

    Args:
        plan: parents come before their children.
        max_tokens: what a wave holds. A prefix that does not fit is dropped from `plan`, in favour of its parent.
    """
    trees: list[list[int]] = []
    for index, prefix in enumerate(plan.prefixes):
        if prefix.parent is None:
            trees.append([])
        trees[-1].append(index)
    made: list[list[int]] = []
    held = 0
    for tree in trees:
        kept = _fitting(plan, tree, max_tokens)
        size = sum(len(plan.prefixes[index].token_ids) for index in kept)
        if not made or held + size > max_tokens:
            made.append([])
            held = 0
        made[-1] += kept
        held += size
    return made


def _fitting(plan: PrefixPlan, tree: Sequence[int], max_tokens: int) -> list[int]:
    """The prefixes of a tree that fit together; prompts of the others go on from the longest one that does."""
    kept: list[int] = []
    mine, size = set(tree), 0
    for index in tree:
        length = len(plan.prefixes[index].token_ids)
        if size + length <= max_tokens:
            kept.append(index)
            size += length
    stays = set(kept)
    if len(kept) < len(tree):
        for place, longest in enumerate(plan.prefix_of):
            while longest is not None and longest not in stays and longest in mine:
                longest = plan.prefixes[longest].parent
            plan.prefix_of[place] = longest
    return kept
