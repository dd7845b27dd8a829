"""Prompts that begin alike: each shared beginning runs once, and its keys and values serve all who follow."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

from ..batch import ForwardItem, TokenSequence
from ..row import KeyValues
from ..schedule import begun
from .prefix_cache import PrefixCache
from .prefix_tree import PrefixPlan, TokenIds, plan_prefixes
from .waves import waves

MIN_TOKENS = 8
"""A shared beginning is at least so long: shorter ones cost more in bookkeeping than they save."""
_MIN_SAVED = 64


class Sharing:
    """Plans what of a call's prompts runs once, and runs it.

    Args:
        cache: of prefixes, across calls.
        bytes_a_token: of keys and values, all layers together.
        keep: runs works for their keys and values alone, many at a time, and gives back those that ran.
        group_of: prompts of different groups never share; None never shares at all.
    """

    def __init__(
        self,
        cache: PrefixCache,
        bytes_a_token: int,
        keep: Callable[[Sequence[ForwardItem]], Sequence[ForwardItem]],
        group_of: Callable[[TokenSequence], Hashable],
    ) -> None:
        self.cache = cache
        self.max_tokens = cache.max_bytes // max(bytes_a_token, 1)
        self._keep = keep
        self._group_of = group_of

    def works(self, sequences: Sequence[TokenSequence]) -> Iterator[list[tuple[int, ForwardItem]]]:
        """Works for all sequences, with their indices, in waves: a wave's prefixes have run when it is yielded.

        Args:
            sequences: all different.
        """
        groups = [self._group(each) for each in sequences]
        plan = self._plan(sequences, groups)
        rest = set(range(len(sequences)))
        for wave in waves(plan, self.max_tokens):
            examples = _examples(plan, wave)
            members = [index for index in sorted(rest) if plan.prefix_of[index] in examples]
            rest.difference_update(members)
            values = self._run_prefixes(plan, examples, sequences)
            missing = set(examples).difference(values)
            works = [(each, self._work(sequences[each], groups[each], plan, values, missing, each)) for each in members]
            if works:
                yield works
            # What the wave held is let go before the next one runs, whoever still has the list.
            works.clear()
            values.clear()
        if rest:
            yield [(each, self._work(sequences[each], groups[each], plan, {}, set(), each)) for each in sorted(rest)]
        self._remember(sequences, groups)

    def finished(self, work: ForwardItem) -> None:
        """Keep what a work was told to keep, for later calls."""
        if work.keep is not None:
            ids = work.sequence.key_ids[: work.keep.num_tokens]
            self.cache.add(self._group(work.sequence), ids, work.keep)

    def _group(self, sequence: TokenSequence) -> Hashable:
        """Prompts of equal groups may share. The trie knows token ids alone, so the rest has to be as it always is."""
        if sequence.token_type_ids is not None and any(sequence.token_type_ids):
            return None
        return self._group_of(sequence)

    def _plan(self, sequences: Sequence[TokenSequence], groups: Sequence[Hashable]) -> PrefixPlan:
        """The shared prefixes of these prompts and of recent ones, which are told apart by their places behind them."""
        # Up to the first token that is wanted, in whose place is what no other prompt has.
        prompts: list[TokenIds] = [
            each.key_ids if each.pooled_at is None else (*each.key_ids[: each.num_before], -2 - index)
            for index, each in enumerate(sequences)
        ]
        places: list[Hashable] = [(index,) if group is None else group for index, group in enumerate(groups)]
        seen = set(zip(groups, prompts, strict=True))
        heads: dict[Hashable, set[TokenIds]] = {}
        for group, prompt in zip(groups, list(prompts), strict=True):
            if group is not None:
                heads.setdefault(group, set()).add(prompt[:MIN_TOKENS])
        for group, found in heads.items():
            for earlier in dict.fromkeys(self.cache.recent(group, found)):
                # The same prompt again shares all but its last token, which is needed for its state.
                prompts.append(earlier if (group, earlier) not in seen else (*earlier[:-1], -1))
                places.append(group)
        plan = plan_prefixes(prompts, places, min_tokens=MIN_TOKENS, min_saved=_MIN_SAVED)
        del plan.prefix_of[len(sequences) :]
        return plan.of_use()

    def _run_prefixes(
        self, plan: PrefixPlan, examples: Mapping[int, Sequence[int]], sequences: Sequence[TokenSequence]
    ) -> dict[int, KeyValues]:
        """Keys and values of prefixes: those at hand, and the others level by level, parents first.

        A prefix that a single prompt of this call has is left to that prompt's own forward, which keeps it; so is
        one that the model computes otherwise when it stands alone (a rotary variant that looks at the length).
        """
        values: dict[int, KeyValues] = {}
        wave = [index for index, users in examples.items() if len(users) > 1]
        for depth in sorted({plan.depth(index) for index in wave}):
            works: dict[int, ForwardItem] = {}
            for index in (each for each in wave if plan.depth(each) == depth):
                prefix = plan.prefixes[index]
                length = len(prefix.token_ids)
                known = self.cache.find(prefix.group, prefix.token_ids, length)
                past = _longer(known, values.get(prefix.parent) if prefix.parent is not None else None)
                if past is not None and past.num_tokens == length:
                    values[index] = past
                    continue
                alone = begun(sequences[examples[index][0]], length)
                if self._group(alone) == prefix.group:
                    works[index] = ForwardItem(alone, past, KeyValues(length))
            ran = {id(work) for work in self._keep(list(works.values()))} if works else set()
            for index, work in works.items():
                if id(work) in ran and work.keep is not None:
                    values[index] = work.keep
                    self.finished(work)
        return values

    def _work(
        self,
        sequence: TokenSequence,
        group: Hashable,
        plan: PrefixPlan,
        values: dict[int, KeyValues],
        missing: set[int],
        place: int,
    ) -> ForwardItem:
        """The work of one prompt: what is known of it is left out, and what comes again is kept.

        Args:
            missing: prefixes that the first prompt to need them keeps; it is taken out.
        """
        if group is None:
            return ForwardItem(sequence)
        prefix = plan.prefix_of[place]
        known = self.cache.find(group, sequence.key_ids, sequence.num_before)
        past = _longer(known, values.get(prefix) if prefix is not None else None)
        keep = None
        if prefix is not None and prefix in missing:
            missing.remove(prefix)
            length = len(plan.prefixes[prefix].token_ids)
            if past is None or past.num_tokens < length:
                keep = KeyValues(length)
        return ForwardItem(sequence, past, keep)

    def _remember(self, sequences: Sequence[TokenSequence], groups: Sequence[Hashable]) -> None:
        for sequence, group in zip(sequences[-256:], groups[-256:], strict=True):
            if group is not None:
                self.cache.remember(group, sequence.key_ids)


def _examples(plan: PrefixPlan, wave: Sequence[int]) -> dict[int, list[int]]:
    """The prefixes of a wave that prompts of this call have, each with one or two of these."""
    users: dict[int, list[int]] = {}
    held = set(wave)
    for place, index in enumerate(plan.prefix_of):
        while index in held:
            known = users.setdefault(index, [])
            if len(known) > 1:
                break
            known.append(place)
            index = plan.prefixes[index].parent
    return users


def _longer(first: KeyValues | None, second: KeyValues | None) -> KeyValues | None:
    if first is None or second is None:
        return first or second
    return first if first.num_tokens >= second.num_tokens else second
