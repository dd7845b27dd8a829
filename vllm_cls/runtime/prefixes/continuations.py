"""Prompts with several continuations: a prompt runs once, and each continuation's tokens once behind it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ..batch import ForwardItem, SequenceForm, TokenSequence
from ..row import KeyValues

T = TypeVar("T")
_Key = tuple[tuple[int, ...], int]  # a continuation, and which prompt is before it


@dataclass(frozen=True)
class Continuations:
    """Token ids that go behind every prompt.

    Args:
        ids: shortest first, the empty ones (the prompt itself) among them; with each, all that it begins with.
        form: of the model's sequences.
    """

    ids: Sequence[tuple[int, ...]]
    form: SequenceForm

    @property
    def longest(self) -> int:
        """Tokens of the longest one."""
        return max(map(len, self.ids))

    def behind(self, prompt: TokenSequence, ids: tuple[int, ...]) -> TokenSequence:
        """A prompt that goes on with `ids`."""
        if not ids:
            return prompt
        types = prompt.token_type_ids
        types = None if types is None else (*types, *[types[-1]] * len(ids))
        made = self.form.sequence((*prompt.token_ids, *ids), types)
        media = None if prompt.media is None else prompt.media.behind(ids)
        return replace(made, cache_salt=prompt.cache_salt, adapter=prompt.adapter, exact=prompt.exact, media=media)

    @functools.cached_property
    def _children(self) -> Mapping[tuple[int, ...], list[tuple[int, ...]]]:
        """The continuations that are one token longer."""
        found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for ids in self.ids:
            if ids:
                found.setdefault(ids[:-1], []).append(ids)
        return found

    def whole(
        self, works: Sequence[ForwardItem], execute: Callable[[Sequence[ForwardItem]], Sequence[T]]
    ) -> list[list[T]]:
        """Answers to every continuation of every prompt, in the order of `ids`; each computed from its first token."""
        flat = list(execute([ForwardItem(self.behind(each.sequence, ids)) for each in works for ids in self.ids]))
        return [flat[start : start + len(self.ids)] for start in range(0, len(flat), len(self.ids))]

    def shared(
        self,
        works: Sequence[ForwardItem],
        execute: Callable[[Sequence[ForwardItem]], Sequence[T]],
        ran: Callable[[T], bool],
        most_tokens: int,
    ) -> list[list[T]]:
        """As `whole`, each prompt's and continuation's tokens computed once.

        Args:
            execute: answers to works, each of which may keep keys and values.
            ran: whether an answer is one; what goes on from a work that did not run gets its answer.
            most_tokens: whose keys and values are held for continuations at once; those of one at least.
        """
        keeps = bool(self._children)
        kept: dict[_Key, KeyValues | None] = {
            ((), place): KeyValues(len(each.sequence)) if keeps else each.keep for place, each in enumerate(works)
        }
        first = [ForwardItem(each.sequence, each.past, keep) for each, keep in zip(works, kept.values(), strict=True)]
        answers: dict[_Key, T] = dict(zip(kept, execute(first), strict=True))
        for each, (key, keep) in zip(works, kept.items(), strict=True):
            if keeps and ran(answers[key]):
                _fill(each.keep, keep)
        self._descend(works, kept, answers, execute, ran, most_tokens // max(self.longest, 1))
        return [[answers[ids, place] for ids in self.ids] for place in range(len(works))]

    def _descend(
        self,
        works: Sequence[ForwardItem],
        above: Mapping[_Key, KeyValues | None],
        answers: dict[_Key, T],
        execute: Callable[[Sequence[ForwardItem]], Sequence[T]],
        ran: Callable[[T], bool],
        most_tokens: int,
    ) -> None:
        """Answers to all that goes on from `above`: some continuations, and all behind them, before the next ones."""
        wanted = [(ids, place) for before, place in above for ids in self._children.get(before, ())]
        for part in self._parts(works, wanted, most_tokens):
            kept: dict[_Key, KeyValues | None] = {}
            running: dict[_Key, ForwardItem] = {}
            for ids, place in part:
                before = (ids[:-1], place)
                goes_on = ids in self._children
                if not ran(answers[before]):
                    answers[ids, place], keep = answers[before], None
                else:
                    sequence = self.behind(works[place].sequence, ids)
                    keep = KeyValues(len(sequence)) if goes_on else None
                    running[ids, place] = ForwardItem(sequence, above[before], keep)
                if goes_on:
                    kept[ids, place] = keep
            if running:
                answers.update(zip(running, execute(list(running.values())), strict=True))
            if kept:
                self._descend(works, kept, answers, execute, ran, most_tokens)

    def _parts(self, works: Sequence[ForwardItem], keys: Sequence[_Key], most_tokens: int) -> Iterator[Sequence[_Key]]:
        """Continuations in groups that keep the keys and values of at most so many tokens."""
        costs = [len(ids) + (len(works[place].sequence) if ids in self._children else 0) for ids, place in keys]
        yield from _groups(keys, costs, most_tokens)


def _fill(keep: KeyValues | None, values: KeyValues | None) -> None:
    """Keep the first tokens' keys and values of those of a whole prompt."""
    if keep is not None and values is not None:
        for key, value in values.layers:
            keep.append(key, value)


def chunks(works: Sequence[ForwardItem], most_tokens: int, most_works: int) -> Iterator[Sequence[ForwardItem]]:
    """Works in groups of at most so many, and of at most so many tokens, of which keys and values are held together."""
    for part in _groups(works, [len(each.sequence) for each in works], most_tokens):
        yield from (part[start : start + most_works] for start in range(0, len(part), most_works))


def _groups(items: Sequence[T], costs: Sequence[int], most: int) -> Iterator[Sequence[T]]:
    """Neighbours together as long as their costs allow; one at least."""
    start = total = 0
    for place, cost in enumerate(costs):
        if place > start and total + cost > most:
            yield items[start:place]
            start, total = place, 0
        total += cost
    if items:
        yield items[start:]
