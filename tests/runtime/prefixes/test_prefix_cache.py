"""The prefix cache: least recently used out first, never over its bytes, groups apart."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_cls.runtime.prefixes.prefix_cache import PrefixCache
from vllm_cls.runtime.row import KeyValues

BYTES_A_TOKEN = 2 * 2 * 4  # keys and values, two numbers a token, float32


def values_of(token_ids: tuple[int, ...]) -> KeyValues:
    """Keys that say which token they are of."""
    states = torch.tensor(token_ids, dtype=torch.float32).view(1, 1, -1, 1).expand(1, 1, -1, 2).contiguous()
    return KeyValues(len(token_ids), [(states, -states)])


def add(cache: PrefixCache, *token_ids: int, group: str = "a") -> None:
    cache.add(group, token_ids, values_of(token_ids))


def found(cache: PrefixCache, token_ids: tuple[int, ...], longest: int = 99, group: str = "a") -> int:
    """How many of the tokens are known, their keys and values being looked at."""
    values = cache.find(group, token_ids, longest)
    if values is None:
        return 0
    for key, value in values.layers:
        assert key[0, 0, :, 0].tolist() == list(token_ids[: values.num_tokens])
        assert torch.equal(value, -key)
    return values.num_tokens


def cache_of(tokens: int, min_tokens: int = 2) -> PrefixCache:
    return PrefixCache(tokens * BYTES_A_TOKEN, min_tokens)


def test_as_many_tokens_as_are_known_are_found() -> None:
    cache = cache_of(100)
    add(cache, 1, 2, 3, 4)
    add(cache, 1, 2, 9, 9, 9, 9)
    assert found(cache, (1, 2, 3, 4, 5)) == 4
    assert found(cache, (1, 2, 3, 7)) == 3
    assert found(cache, (1, 2, 9, 9, 9, 7)) == 5
    assert found(cache, (1, 2)) == 2
    assert found(cache, (1, 2, 3, 4), longest=3) == 3
    assert found(cache, (1, 2, 3, 4), longest=1) == 0, "less than the cache's shortest"
    assert found(cache, (1, 7, 3, 4)) == found(cache, (7,)) == 0


def test_the_least_recently_used_entry_goes_first() -> None:
    cache = cache_of(9)
    add(cache, 1, 1, 1)
    add(cache, 2, 2, 2)
    add(cache, 3, 3, 3)
    assert found(cache, (1, 1, 1)) == 3
    add(cache, 4, 4, 4)
    assert [found(cache, (i, i, i)) for i in (1, 2, 3, 4)] == [3, 0, 3, 3]
    assert cache.num_bytes == 9 * BYTES_A_TOKEN


def test_what_is_too_large_or_too_short_is_not_kept_and_costs_nothing() -> None:
    cache = cache_of(4)
    add(cache, 1, 1, 1)
    add(cache, 2, 2, 2, 2, 2)
    add(cache, 3)
    assert len(cache) == 1 and found(cache, (1, 1, 1)) == 3
    nothing = cache_of(0)
    add(nothing, 1, 2, 3)
    nothing.remember("a", (1, 2, 3))
    assert len(nothing) == nothing.num_bytes == 0 and nothing.recent("a", {(1, 2)}) == []


def test_groups_never_see_each_other() -> None:
    cache = cache_of(100)
    add(cache, 1, 2, 3, group="a")
    cache.remember("a", (1, 2, 3))
    assert found(cache, (1, 2, 3), group="b") == 0 and cache.recent("b", {(1, 2)}) == []
    add(cache, 1, 2, group="b")
    assert found(cache, (1, 2, 3), group="b") == 2
    assert found(cache, (1, 2, 3), group="a") == 3


def test_the_same_entry_twice_is_held_once() -> None:
    cache = cache_of(100)
    add(cache, 1, 2, 3)
    add(cache, 1, 2, 3)
    assert len(cache) == 1 and cache.num_bytes == 3 * BYTES_A_TOKEN


def test_clear_forgets_everything() -> None:
    cache = cache_of(100)
    add(cache, 1, 2, 3)
    cache.remember("a", (1, 2, 3))
    cache.clear()
    assert len(cache) == cache.num_bytes == found(cache, (1, 2, 3)) == 0 and cache.recent("a", {(1, 2)}) == []
    add(cache, 1, 2, 3)
    assert found(cache, (1, 2, 3)) == 3


def test_prompts_remembered_by_their_tokens_are_bounded() -> None:
    cache = cache_of(100)
    for number in range(1000):
        cache.remember("a", (1, 2, number))
    assert len(cache.recent("a", {(1, 2)})) == 256 and cache.recent("a", {(1, 2)})[-1] == (1, 2, 999)
    assert cache.recent("a", {(2, 1)}) == []
    for group in range(1000):
        cache.remember(str(group), (1, 2, 3))
    assert cache.recent("0", {(1, 2)}) == [] and cache.recent("999", {(1, 2)}) == [(1, 2, 3)]


def in_common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    return max(n for n in range(min(len(first), len(second)) + 1) if first[:n] == second[:n])


@settings(max_examples=150)
@given(
    st.integers(0, 20),
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 1), min_size=1, max_size=8).map(tuple)), max_size=40),
)
def test_the_bound_holds_after_every_step(tokens: int, steps: list[tuple[bool, tuple[int, ...]]]) -> None:
    cache = cache_of(tokens)
    held: dict[tuple[int, ...], int] = {}  # each with the step that used it last; of two that serve, the older one does
    for step, (adds, token_ids) in enumerate(steps):
        if adds:
            add(cache, *token_ids)
            if 2 <= len(token_ids) <= tokens and token_ids not in held:
                held[token_ids] = step
                while sum(map(len, held)) > tokens:
                    held.pop(min(held, key=held.__getitem__))
        else:
            common = {each: in_common(each, token_ids) for each in held}
            longest = max(common.values(), default=0)
            assert found(cache, token_ids) == (longest if longest >= 2 else 0)
            if longest >= 2:
                held[max(common, key=common.__getitem__)] = step
        assert len(cache) == len(held)
        assert cache.num_bytes == sum(map(len, held)) * BYTES_A_TOKEN <= cache.max_bytes


def test_several_threads_at_once() -> None:
    cache = cache_of(30)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def use(seed: int) -> None:
        for step in range(300):
            token_ids = tuple((seed + step * i) % 3 for i in range(2 + step % 7))
            add(cache, *token_ids)
            assert found(cache, token_ids) <= len(token_ids)
            cache.remember("a", token_ids)
            cache.recent("a", {token_ids[:2]})

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(use, range(4)))
    finally:
        sys.setswitchinterval(before)
    assert 0 < cache.num_bytes <= cache.max_bytes
