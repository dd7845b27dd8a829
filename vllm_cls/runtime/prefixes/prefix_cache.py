"""Keys and values of prefixes, kept across calls: least recently used first out, bounded by bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Collection, Hashable

from ..row import KeyValues
from .prefix_tree import TokenIds, common_length

_RECENT = 256  # prompts remembered by their token ids alone, to see that a prefix comes again


class PrefixCache:
    """Keys and values by token ids. Groups (rotary variant, `cache_salt`) never see each other's entries.

    Args:
        max_bytes: of all keys and values held; 0 keeps nothing.
        min_tokens: shorter prefixes are not kept.
    """

    def __init__(self, max_bytes: int, min_tokens: int) -> None:
        self.max_bytes = max_bytes
        self.min_tokens = min_tokens
        self.num_bytes = 0
        self._entries: OrderedDict[tuple[Hashable, TokenIds], KeyValues] = OrderedDict()
        # Entries by their first `min_tokens` tokens: what a prompt could share is found without a search.
        self._heads: dict[tuple[Hashable, TokenIds], list[TokenIds]] = {}
        self._recent: deque[tuple[Hashable, TokenIds]] = deque(maxlen=_RECENT)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, group: Hashable, token_ids: TokenIds, longest: int) -> KeyValues | None:
        """Keys and values of as many of the first `longest` tokens as are known, at least `min_tokens`; else None."""
        with self._lock:
            best, length = None, self.min_tokens - 1
            for each in self._heads.get((group, token_ids[: self.min_tokens]), ()):
                common = min(common_length(each, token_ids), longest)
                if common > length:
                    best, length = each, common
            if best is None:
                return None
            self._entries.move_to_end((group, best))
            return _first(self._entries[group, best], length)

    def add(self, group: Hashable, token_ids: TokenIds, values: KeyValues) -> None:
        """Keep an entry, letting go of the least recently used ones that no longer fit."""
        size = values.num_bytes
        with self._lock:
            if size > self.max_bytes or len(token_ids) < self.min_tokens or (group, token_ids) in self._entries:
                return
            self._entries[group, token_ids] = values
            self._heads.setdefault((group, token_ids[: self.min_tokens]), []).append(token_ids)
            self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                self._drop(next(iter(self._entries)))

    def recent(self, group: Hashable, heads: Collection[TokenIds]) -> list[TokenIds]:
        """Prompts of earlier calls whose first `min_tokens` tokens are among these, the latest last."""
        with self._lock:
            return [
                token_ids
                for known, token_ids in self._recent
                if known == group and token_ids[: self.min_tokens] in heads
            ]

    def remember(self, group: Hashable, token_ids: TokenIds) -> None:
        """Note a prompt, so that a later one with the same beginning is noticed."""
        if self.max_bytes:
            with self._lock:
                self._recent.append((group, token_ids))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._heads.clear()
            self._recent.clear()
            self.num_bytes = 0

    def _drop(self, key: tuple[Hashable, TokenIds]) -> None:
        group, token_ids = key
        self.num_bytes -= self._entries.pop(key).num_bytes
        head = (group, token_ids[: self.min_tokens])
        self._heads[head].remove(token_ids)
        if not self._heads[head]:
            del self._heads[head]


def _first(values: KeyValues, length: int) -> KeyValues:
    """The first `length` tokens of an entry, as views."""
    if length == values.num_tokens:
        return values
    return KeyValues(length, [(key[:, :, :length], value[:, :, :length]) for key, value in values.layers])
