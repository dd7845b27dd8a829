"""Which prompts begin with the same tokens, found in a trie over token ids."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class SharedPrefix:
    """Tokens with which several prompts begin.

    Args:
        token_ids: from the first token on.
        parent: index of the longest shared prefix that this one begins with, or None.
        group: the group of the prompts.
    """

    token_ids: TokenIds
    parent: int | None
    group: Hashable


@dataclass
class PrefixPlan:
    """Shared prefixes, parents before children, and for each prompt the longest one it goes on from, or None."""

    prefixes: list[SharedPrefix] = field(default_factory=list)
    prefix_of: list[int | None] = field(default_factory=list)

    def depth(self, index: int | None) -> int:
        """How many prefixes lie on the way to this one, itself included."""
        count = 0
        while index is not None:
            count, index = count + 1, self.prefixes[index].parent
        return count

    def of_use(self) -> PrefixPlan:
        """The plan without prefixes that no prompt goes on from, directly or through others."""
        used: set[int] = set()
        for index in self.prefix_of:
            while index is not None and index not in used:
                used.add(index)
                index = self.prefixes[index].parent
        places: dict[int | None, int | None] = {None: None}
        places |= {index: place for place, index in enumerate(sorted(used))}
        kept = [replace(self.prefixes[index], parent=places[self.prefixes[index].parent]) for index in sorted(used)]
        return PrefixPlan(kept, [places[index] for index in self.prefix_of])


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two prompts have in common at their start; by bisection, at the speed of comparing tuples."""
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


def plan_prefixes(
    prompts: Sequence[TokenIds], groups: Sequence[Hashable], *, min_tokens: int, min_saved: int
) -> PrefixPlan:
    """Find the prefixes that are worth computing once.

    Args:
        prompts: token ids, all different within a group.
        groups: prompts share only within a group.
        min_tokens: a shared part is at least so long, counted from the next shorter shared prefix.
        min_saved: and saves at least so many tokens.
    """
    plan = PrefixPlan(prefix_of=[None] * len(prompts))
    by_group: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        by_group.setdefault(group, []).append(index)
    for group, members in by_group.items():
        if len(members) > 1:
            order = sorted(members, key=lambda index: prompts[index])
            _plan_group(plan, prompts, group, order, min_tokens, min_saved)
    return plan


def _plan_group(
    plan: PrefixPlan, prompts: Sequence[TokenIds], group: Hashable, order: list[int], min_tokens: int, min_saved: int
) -> None:
    """Walk the trie's inner nodes from the root, keeping those that pay; `open_` is the way to the current one."""
    open_: list[tuple[int, int]] = []  # (index of the kept prefix, right end of its interval)
    for depth, left, right in _intervals([prompts[index] for index in order]):
        while open_ and open_[-1][1] < left:
            open_.pop()
        parent = open_[-1][0] if open_ else None
        begun = len(plan.prefixes[parent].token_ids) if parent is not None else 0
        # In sorted order a prompt that ends right here comes first; it needs a token of its own to be pooled.
        first = left + (len(prompts[order[left]]) == depth)
        own, users = depth - begun, right - first + 1
        if own < min_tokens or own * (users - 1) < min_saved:
            continue
        index = len(plan.prefixes)
        plan.prefixes.append(SharedPrefix(prompts[order[right]][:depth], parent, group))
        open_.append((index, right))
        for place in range(first, right + 1):
            plan.prefix_of[order[place]] = index


def _intervals(ordered: Sequence[TokenIds]) -> list[tuple[int, int, int]]:
    """The trie's inner nodes as `(depth, first prompt, last prompt)`, each before those inside it.

    Adjacent prompts of the sorted list have the longest common prefixes; the nodes are the intervals of equal ones
    (Abouelhoda, Kurtz, Ohlebusch: Replacing suffix trees with enhanced suffix arrays, 2004).
    """
    found = []
    stack = [(0, 0)]
    for index in range(1, len(ordered) + 1):
        common = common_length(ordered[index - 1], ordered[index]) if index < len(ordered) else -1
        left = index - 1
        while stack and common < stack[-1][0]:
            depth, left = stack.pop()
            if depth:
                found.append((depth, left, index - 1))
        if common > (stack[-1][0] if stack else -1):
            stack.append((common, left))
    return sorted(found, key=lambda node: (node[1], -node[2], node[0]))
