"""Shared prefixes equal those of a trie that is built token by token."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_cls.runtime.prefixes.prefix_tree import PrefixPlan, SharedPrefix, TokenIds, common_length, plan_prefixes

PROMPT = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple)


def branch_points(prompts: Sequence[TokenIds]) -> list[TokenIds]:
    """Every non-empty token sequence at which the trie of these prompts branches or a prompt ends, parents first."""
    found = set()
    for prompt in prompts:
        for length in range(1, len(prompt) + 1):
            begun = prompt[:length]
            behind = {other[length] for other in prompts if len(other) > length and other[:length] == begun}
            ends = any(other == begun for other in prompts)
            if len(behind) + ends > 1:
                found.add(begun)
    return sorted(found, key=len)


def by_brute_force(
    prompts: Sequence[TokenIds], groups: Sequence[Hashable], min_tokens: int, min_saved: int
) -> list[TokenIds | None]:
    """For each prompt the longest prefix that is worth sharing, or None."""
    longest: dict[tuple[Hashable, TokenIds], TokenIds | None] = dict.fromkeys(zip(groups, prompts, strict=True))
    for group in dict.fromkeys(groups):
        members = [prompt for prompt, its in zip(prompts, groups, strict=True) if its == group]
        for begun in branch_points(members):
            users = [each for each in members if each[: len(begun)] == begun and len(each) > len(begun)]
            parent = longest[group, users[0]] if users else None
            own = len(begun) - len(parent or ())
            if own >= min_tokens and own * (len(users) - 1) >= min_saved:
                for each in users:
                    longest[group, each] = begun
    return [longest[group, prompt] for group, prompt in zip(groups, prompts, strict=True)]


@settings(max_examples=150)
@given(
    st.lists(st.tuples(PROMPT, st.integers(0, 1)), max_size=25, unique=True),
    st.integers(1, 4),
    st.integers(1, 12),
)
def test_it_finds_what_a_trie_finds(items: list[tuple[TokenIds, int]], min_tokens: int, min_saved: int) -> None:
    prompts, groups = [prompt for prompt, _ in items], [group for _, group in items]
    plan = plan_prefixes(prompts, groups, min_tokens=min_tokens, min_saved=min_saved)
    found = [None if index is None else plan.prefixes[index].token_ids for index in plan.prefix_of]
    assert found == by_brute_force(prompts, groups, min_tokens, min_saved)
    for index, prefix in enumerate(plan.prefixes):
        parent = plan.prefixes[prefix.parent] if prefix.parent is not None else None
        assert prefix.parent is None or prefix.parent < index
        assert parent is None or parent.group == prefix.group
        begun = parent.token_ids if parent else ()
        assert prefix.token_ids[: len(begun)] == begun and len(prefix.token_ids) - len(begun) >= min_tokens
    for place, own in enumerate(plan.prefix_of):
        if own is not None:
            assert plan.prefixes[own].group == groups[place]
            assert len(plan.prefixes[own].token_ids) < len(prompts[place]), "nothing would be left to pool"


@given(PROMPT, PROMPT)
def test_common_length(first: TokenIds, second: TokenIds) -> None:
    expected = 0
    while expected < min(len(first), len(second)) and first[expected] == second[expected]:
        expected += 1
    assert common_length(first, second) == common_length(second, first) == expected


def test_a_template_with_nested_examples() -> None:
    template = tuple(range(20))
    query = (*template, 50, *range(60, 80))
    prompts = [(*query, 90 + i) for i in range(5)] + [(*template, 40 + i, 7) for i in range(5)] + [template]
    plan = plan_prefixes(prompts, [0] * len(prompts), min_tokens=8, min_saved=16)
    assert [(len(each.token_ids), each.parent) for each in plan.prefixes] == [(20, None), (41, 0)]
    assert plan.prefix_of == [1] * 5 + [0] * 5 + [None]
    assert plan.depth(1) == 2 and plan.depth(0) == 1 and plan.depth(None) == 0


def test_prefixes_that_nobody_goes_on_from_are_left_out() -> None:
    chain = [
        SharedPrefix((1,), None, 0),
        SharedPrefix((2,), None, 0),
        SharedPrefix((2, 3), 1, 0),
        SharedPrefix((2, 4), 1, 0),
    ]
    plan = PrefixPlan(chain, [3, None, 3]).of_use()
    assert plan.prefixes == [SharedPrefix((2,), None, 0), SharedPrefix((2, 4), 0, 0)]
    assert plan.prefix_of == [1, None, 1]
    assert PrefixPlan(chain, [None]).of_use() == PrefixPlan([], [None])


def test_nothing_and_one_prompt_have_no_prefixes() -> None:
    for prompts in ([], [(1, 2, 3)]):
        assert plan_prefixes(prompts, [0] * len(prompts), min_tokens=1, min_saved=1).prefixes == []
