"""Prompts with several continuations: a prompt runs once, and each continuation's tokens once behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..architecture import Architecture
from .batch import TokenSequence, Work, token_sequence
from .row import KeyValues

T = TypeVar("T")


@dataclass(frozen=True)
class Continuations:
    """Token ids that go behind every prompt.

    Args:
        ids: shortest first, the empty ones (the prompt itself) among them; with each, all that it begins with.
        architecture: numbers positions.
        config: the backbone's.
    """

    ids: Sequence[tuple[int, ...]]
    architecture: Architecture
    config: Any

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
        made = token_sequence(self.architecture, self.config, (*prompt.token_ids, *ids), types)
        return replace(made, cache_salt=prompt.cache_salt, adapter=prompt.adapter)

    def levels(self) -> Iterator[list[tuple[int, ...]]]:
        """The continuations by length, from that of one token on."""
        for length in range(1, self.longest + 1):
            yield [ids for ids in self.ids if len(ids) == length]

    def goes_on(self, ids: tuple[int, ...]) -> bool:
        """Whether a longer one begins with these."""
        return any(len(other) > len(ids) and other[: len(ids)] == ids for other in self.ids)

    def whole(self, works: Sequence[Work], execute: Callable[[Sequence[Work]], Sequence[T]]) -> list[list[T]]:
        """Answers to every continuation of every prompt, in the order of `ids`; each computed from its first token."""
        flat = list(execute([Work(self.behind(each.sequence, ids)) for each in works for ids in self.ids]))
        return [flat[start : start + len(self.ids)] for start in range(0, len(flat), len(self.ids))]

    def shared(
        self,
        works: Sequence[Work],
        execute: Callable[[Sequence[Work]], Sequence[T]],
        ran: Callable[[T], bool],
    ) -> list[list[T]]:
        """As `whole`, each prompt's and continuation's tokens computed once.

        Args:
            execute: answers to works, each of which may keep keys and values.
            ran: whether an answer is one; what goes on from a work that did not run gets its answer.
        """
        keeps = self.goes_on(())
        kept: dict[tuple[tuple[int, ...], int], KeyValues | None] = {
            ((), place): KeyValues(len(each.sequence)) if keeps else each.keep for place, each in enumerate(works)
        }
        answers: dict[tuple[tuple[int, ...], int], T] = {}
        level: list[tuple[tuple[int, ...], int]] = [((), place) for place in range(len(works))]
        first = [Work(each.sequence, each.past, kept[key]) for key, each in zip(level, works, strict=True)]
        answers.update(zip(level, execute(first), strict=True))
        for each, key in zip(works, level, strict=True):
            if keeps and ran(answers[key]):
                _fill(each.keep, kept[key])
        for found in self.levels():
            keys, behind = [], []
            for ids in found:
                for place, each in enumerate(works):
                    before = (ids[:-1], place)
                    if not ran(answers[before]):
                        answers[ids, place] = answers[before]
                        continue
                    sequence = self.behind(each.sequence, ids)
                    kept[ids, place] = KeyValues(len(sequence)) if self.goes_on(ids) else None
                    keys.append((ids, place))
                    behind.append(Work(sequence, kept[before], kept[ids, place]))
            if behind:
                answers.update(zip(keys, execute(behind), strict=True))
        return [[answers[ids, place] for ids in self.ids] for place in range(len(works))]


def _fill(keep: KeyValues | None, values: KeyValues | None) -> None:
    """Keep the first tokens' keys and values of those of a whole prompt."""
    if keep is not None and values is not None:
        for key, value in values.layers:
            keep.append(key, value)


def chunks(works: Sequence[Work], most_tokens: int) -> Iterator[Sequence[Work]]:
    """Works in groups of at most so many tokens, of which keys and values are held together; one at least."""
    start = total = 0
    for place, each in enumerate(works):
        if place > start and total + len(each.sequence) > most_tokens:
            yield works[start:place]
            start, total = place, 0
        total += len(each.sequence)
    if works:
        yield works[start:]
