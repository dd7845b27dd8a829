"""Batches that fill their budget, waves that fit in memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_cls.runtime import schedule
from vllm_cls.runtime.batch import TokenSequence
from vllm_cls.runtime.prefixes.prefix_tree import PrefixPlan, SharedPrefix, plan_prefixes
from vllm_cls.runtime.prefixes.waves import waves
from vllm_cls.runtime.schedule import Budget, begun, plan_batches


def loads(lengths: list[int], budget: Budget) -> list[int]:
    batches = plan_batches(lengths, [0] * len(lengths), budget, padded=False)
    return sorted(sum(lengths[index] for index in batch) for batch in batches)


def test_batches_are_as_few_and_as_equal_as_they_can_be() -> None:
    assert loads([30, 20, 20, 30], Budget(50, 256)) == [50, 50]
    assert loads([10] * 9, Budget(50, 256)) == [40, 50]
    assert loads([10] * 9, Budget(1000, 256)) == [90]
    assert loads([10] * 9, Budget(1000, 4)) == [30, 30, 30]


def test_every_worker_gets_a_batch_where_that_pays() -> None:
    assert loads([100] * 6, Budget(1000, 256, num_workers=3)) == [200, 200, 200]
    assert loads([10] * 6, Budget(1000, 256, num_workers=3)) == [60]
    assert loads([100] * 7, Budget(300, 256, num_workers=2)) == [100, 200, 200, 200]


@pytest.mark.parametrize("length", [260, 300, 342, 511])
def test_prompts_just_over_half_the_budget_are_planned_without_trying_every_count(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    spread = schedule._spread
    monkeypatch.setattr(schedule, "_spread", lambda *args: tries.append(args[2]) or spread(*args))
    lengths = [length] * 1500
    batches = plan_batches(lengths, [0] * 1500, Budget(512, 256, 2), padded=False)
    assert len(batches) == 1500
    assert len(tries) < 30


@settings(max_examples=60)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=60), st.integers(8, 128), st.integers(1, 3))
def test_no_batch_is_empty_and_few_are_more_than_needed(lengths: list[int], limit: int, num_workers: int) -> None:
    batches = plan_batches(lengths, [0] * len(lengths), Budget(limit, 256, num_workers), padded=False)
    assert all(batches)
    # Two batches that would fit in one are only made for the workers.
    rest = [length for length in lengths if length < limit]
    alone = len(lengths) - len(rest)
    assert len(batches) - alone <= 2 * -(-sum(rest) // limit) + num_workers


def tree(*shapes: tuple[int, int | None]) -> PrefixPlan:
    """A plan of prefixes given as (length, parent), and one prompt for each."""
    prefixes = [SharedPrefix((0,) * length, parent, 0) for length, parent in shapes]
    return PrefixPlan(prefixes, list(range(len(shapes))))


def test_all_prefixes_run_at_once_where_they_fit() -> None:
    plan = tree((10, None), (20, 0), (15, None))
    assert waves(plan, 45) == [[0, 1, 2]]
    assert plan.prefix_of == [0, 1, 2]


def test_trees_that_do_not_fit_together_run_one_after_the_other() -> None:
    assert waves(tree((10, None), (20, 0), (15, None), (5, None)), 30) == [[0, 1], [2, 3]]


def test_a_prefix_that_does_not_fit_is_dropped_in_favour_of_its_parent() -> None:
    plan = tree((10, None), (20, 0), (15, 0), (25, 2), (12, None))
    assert waves(plan, 29) == [[0, 2], [4]]
    assert plan.prefix_of == [0, 0, 2, 2, 4]
    plan = tree((10, None), (20, 0))
    assert waves(plan, 5) == [[]]
    assert plan.prefix_of == [None, None]


@settings(max_examples=150)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), max_size=25, unique=True),
    st.integers(0, 60),
)
def test_no_wave_holds_more_than_it_may(prompts: list[tuple[int, ...]], max_tokens: int) -> None:
    plan = plan_prefixes(prompts, [0] * len(prompts), min_tokens=1, min_saved=1)
    before = list(plan.prefix_of)
    made = waves(plan, max_tokens)
    for wave in made:
        assert sum(len(plan.prefixes[index].token_ids) for index in wave) <= max_tokens
        for index in wave:
            parent = plan.prefixes[index].parent
            assert parent is None or parent in wave, "a parent is there when its child runs"
    kept = [index for wave in made for index in wave]
    assert len(kept) == len(set(kept))
    for place, index in enumerate(plan.prefix_of):
        assert index is None or index in kept
        if index != before[place]:
            assert before[place] not in kept


def test_the_beginning_of_a_prompt_keeps_its_positions_types_and_salt() -> None:
    prompt = TokenSequence((5, 6, 7), (2, 3, 4), (0, 0, 1), "salt")
    assert begun(prompt, 2) == TokenSequence((5, 6), (2, 3), (0, 0), "salt")
    assert begun(TokenSequence((5, 6), (0, 1)), 1) == TokenSequence((5,), (0,))
